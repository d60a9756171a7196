//! Who gets this request: the compiled routes, the split of a service between its backends, and
//! the immutable snapshot that the data plane reads. Pure; uses the model alone.

pub mod edge;
pub mod limits;
pub mod snapshot;
pub mod split;
pub mod table;

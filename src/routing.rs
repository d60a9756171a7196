//! Who gets this request: its path's normal form, the compiled routes and what they change, the
//! split of a service between its backends, and the immutable snapshot that the data plane reads.
//! Pure; uses the model alone.

pub mod condition;
pub mod edge;
pub mod filter;
pub mod force;
pub mod limits;
pub mod members;
pub mod mirror;
pub mod path;
pub mod pattern;
pub mod policy;
pub mod retry;
pub mod snapshot;
pub mod split;
pub mod table;

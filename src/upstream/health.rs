//! When an endpoint is passed over.

pub mod outlier;

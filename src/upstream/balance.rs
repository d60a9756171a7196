//! Which endpoint of a backend gets the next request. The rules are pure functions over loads, counts,
//! keys and random numbers; [`super::backend`] applies them to what is there.

pub mod ewma;
pub mod hash;
pub mod p2c;
pub mod slow_start;

//! What the words of the design mean, as types. Everything here is a value: parsed once, cheap to
//! copy or clone, impossible to get wrong afterwards. Uses nothing else of ours.

pub mod failure;
pub mod histogram;
pub mod name;
pub mod outcome;
pub mod protocol;
pub mod role;
pub mod slots;
pub mod template;
pub mod time;
pub mod units;
pub mod weight;

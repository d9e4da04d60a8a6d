//! .

pub mod access;
pub mod audit;

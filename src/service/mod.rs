//! .

pub mod access;

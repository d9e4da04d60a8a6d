pub mod redis_server;
pub mod store;

//! The server on real sockets, with real clients. Each has its server in a thread of its own; all limits of time are generous.

mod access;
mod fixture;
mod limits;
mod pages;
mod profiles;
mod sockets;
mod stop;

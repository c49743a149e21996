//! Real programs of each version of Go, and what their own runtime says.

mod debug_info;
mod goroutines;
mod heap;
mod layouts;
mod rate;
mod target;
mod threads;

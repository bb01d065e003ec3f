//! One HTTP exchange over one pair of byte streams: head, body in frames, trailers, end.
//!
//! Generic over the streams, so that it is tested without a network and runs over any transport. Rules that both ends keep:
//! a body ends with exactly one trailers frame (maybe empty), and then the direction is ended cleanly; whatever ends
//! otherwise was cut short and is an error. Breaking a direction off carries a [`crate::code::Code`].

pub(crate) mod client;
pub(crate) mod reader;
pub(crate) mod server;
pub(crate) mod splice;
pub(crate) mod writer;

#[cfg(test)]
mod tests;

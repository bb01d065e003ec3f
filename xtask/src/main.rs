//! Tasks of the checkout.
fn main() {}

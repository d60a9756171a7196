//! Parses the command line, calls the library, turns an error into an exit code. Decides nothing.

fn main() {}

//! Parses the command line, calls the library, turns an error into an exit code. Decides nothing.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::cli::main()
}

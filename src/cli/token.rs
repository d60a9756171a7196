//! `tidegate token`.

use anyhow::Context as _;

use super::args::NewToken;
use crate::admin::token::{Hex, Token};

/// Prints a new token, and the lines that make it known.
#[expect(clippy::print_stdout, reason = "it is what was asked for")]
pub(super) fn new(args: &NewToken) -> anyhow::Result<()> {
    let NewToken { name, scope, service } = args;
    let token = Token::new().context("the system has no random numbers")?;
    let services: Vec<_> = service.iter().map(|service| service.as_str()).collect();
    println!("# For {name}, who keeps it secret. It is shown this once.");
    println!("{}", token.reveal());
    println!();
    println!("# For the file that `credentials` under [admin] names.");
    println!("[[credentials]]");
    println!("name = {name:?}");
    println!("token_sha256 = \"{}\"", Hex(&token.sha256()));
    println!("scope = \"{}\"", scope.name());
    if !services.is_empty() {
        println!("services = {services:?}");
    }
    Ok(())
}

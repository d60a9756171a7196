//! `tidegate demo`: the whole loop on this machine, with real sockets.

/// Plays the demo.
///
/// # Errors
/// When anything went otherwise than it should.
pub fn main(_keep: bool, _plain: bool) -> anyhow::Result<()> {
    anyhow::bail!("not here yet")
}

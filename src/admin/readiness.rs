//! Whether the process wants traffic.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether the process wants traffic. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<watch::Sender<bool>>);

impl Readiness {
    /// From now on it does, or does not.
    pub fn set(&self, ready: bool) {
        self.0.send_replace(ready);
    }

    /// Whether it does.
    pub fn is_ready(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it does not any more.
    pub(super) async fn draining(&self) {
        let mut ready = self.0.subscribe();
        for wanted in [true, false] {
            // It cannot fail: who waits holds on to the other end.
            let _seen = ready.wait_for(|ready| *ready == wanted).await;
        }
    }
}

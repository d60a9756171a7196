//! A thread with a runtime of its own, that ends when its handle is dropped.
//!
//! Backends and load each have one, so that neither the proxy's control half nor what the person
//! sees is delayed by them.

use std::{io, thread};

use tokio::{runtime, sync::oneshot, task::LocalSet};

/// A handle on the thread; dropping it ends what the thread does.
#[derive(Debug)]
pub(super) struct Thread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Thread {
    /// Starts a thread that runs what `work` returns, which is made there and need not be `Send`.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub(super) fn spawn<F: Future<Output = ()>>(
        name: &str,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    () = work() => {}
                    // Nobody sends: the handle is dropped.
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What it panicked with has been printed; dropping must not panic again.
            let _panicked = thread.join();
        }
    }
}

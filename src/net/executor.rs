//! Where hyper's own tasks run: where they are made.

use hyper::rt::Executor;

/// Runs hyper's tasks on the worker's thread, so that they share its state without locks.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

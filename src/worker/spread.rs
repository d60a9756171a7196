//! Spreading a listener's connections over the workers.
//!
//! The kernel gives each connection to a worker by a hash of its addresses, which is chance: of 64
//! connections one of eight workers may well get three and another fourteen. So a worker that has clearly
//! more of them than another hands a new one over, as Envoy's exact balance and HAProxy's threads do. It
//! happens once in a connection's life, before its first byte has been read, and never with one worker.
//!
//! Counted are connections, not what goes on in them.

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// No worker has more connections than another by over this part of the mean, rounded up to one.
const TOLERANCE: u32 = 5;
/// Connections that may be on their way to a worker.
const QUEUE: usize = 128;

/// One worker's side of the spread.
#[derive(Debug)]
pub(super) struct Spread {
    worker: usize,
    /// Connections that are open, by worker.
    open: Arc<[AtomicU32]>,
    to: Arc<[mpsc::Sender<Moved>]>,
    arriving: mpsc::Receiver<Moved>,
}

/// A connection that another worker shall serve.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) socket: TcpStream,
    pub(super) address: SocketAddr,
    /// The place that it took behind the listener, wherever it is served.
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) counted: Counted,
}

/// A connection counts for a worker while this lives.
#[derive(Debug)]
pub(super) struct Counted {
    worker: usize,
    open: Arc<[AtomicU32]>,
}

impl Spread {
    /// The workers' sides.
    pub(super) fn over(workers: usize) -> impl Iterator<Item = Self> {
        let open: Arc<[AtomicU32]> = (0..workers).map(|_| AtomicU32::new(0)).collect();
        let (to, arriving): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel(QUEUE)).unzip();
        let to: Arc<[_]> = to.into();
        arriving.into_iter().enumerate().map(move |(worker, arriving)| Self {
            worker,
            open: Arc::clone(&open),
            to: Arc::clone(&to),
            arriving,
        })
    }

    /// Counts a new connection, for this worker or for the one that has clearly fewer.
    pub(super) fn count(&self) -> Counted {
        let worker = self.fittest();
        self.open[worker].fetch_add(1, Relaxed);
        Counted { worker, open: Arc::clone(&self.open) }
    }

    /// Counts a connection that this worker will serve, whatever the others have.
    pub(super) fn count_here(&self) -> Counted {
        self.open[self.worker].fetch_add(1, Relaxed);
        Counted { worker: self.worker, open: Arc::clone(&self.open) }
    }

    /// Whether a connection has been counted for this worker.
    pub(super) fn is_ours(&self, counted: &Counted) -> bool {
        counted.worker == self.worker
    }

    /// Hands a connection to the worker for which it was counted.
    ///
    /// # Errors
    /// Gives it back, counted for this worker, when the other takes no more: it has too many on their
    /// way, or ends.
    pub(super) fn hand_over(&self, moved: Moved) -> Result<(), Moved> {
        let sent = self.to[moved.counted.worker].try_send(moved);
        sent.map_err(|refused| Moved { counted: self.count_here(), ..refused.into_inner() })
    }

    /// The next connection that another worker hands over.
    pub(super) async fn arrival(&mut self) -> Option<Moved> {
        self.arriving.recv().await
    }

    /// Lets nobody hand over any more; what is on its way arrives still.
    pub(super) fn close(&mut self) {
        self.arriving.close();
    }

    fn fittest(&self) -> usize {
        let (mut total, mut fewest, mut fittest) = (0, u32::MAX, self.worker);
        for (worker, open) in self.open.iter().enumerate() {
            let open = open.load(Relaxed);
            total += u64::from(open);
            if open < fewest {
                (fewest, fittest) = (open, worker);
            }
        }
        let parts = u64::from(TOLERANCE) * self.open.len() as u64;
        let slack = u32::try_from(total / parts).unwrap_or(u32::MAX).max(1);
        let mine = self.open[self.worker].load(Relaxed);
        if mine >= fewest.saturating_add(slack) { fittest } else { self.worker }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open[self.worker].fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets connections come at workers by chance, and says how many each has in the end.
    fn spread(workers: usize, connections: usize) -> Vec<u32> {
        let sides: Vec<_> = Spread::over(workers).collect();
        // A fixed walk that favours some workers: a multiplicative hash, its upper bits.
        let counted: Vec<_> = (0..connections as u64)
            .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60) as usize % workers)
            .map(|worker| sides[worker].count())
            .collect();
        let open = sides[0].open.iter().map(|open| open.load(Relaxed)).collect();
        drop(counted);
        assert!(sides[0].open.iter().all(|open| open.load(Relaxed) == 0));
        open
    }

    #[test]
    fn workers_have_within_a_fifth_of_the_mean() {
        for (workers, connections) in [(2, 64), (3, 64), (4, 64), (8, 64), (8, 1000), (64, 640)] {
            let open = spread(workers, connections);
            let mean = connections as f64 / workers as f64;
            for open in &open {
                assert!((f64::from(*open) - mean).abs() <= mean / 5.0, "{workers} workers: {open} of {mean}");
            }
        }
    }

    #[test]
    fn what_is_nearly_even_is_left_where_it_came() {
        let sides: Vec<_> = Spread::over(2).collect();
        let mut counted: Vec<_> = (0..60).map(|i| sides[i % 2].count_here()).collect();
        for _ in 0..6 {
            counted.push(sides[0].count());
            assert!(sides[0].is_ours(&counted[counted.len() - 1]));
        }
        assert!(!sides[0].is_ours(&sides[0].count()));
    }

    #[test]
    fn one_worker_keeps_everything() {
        assert_eq!(spread(1, 10), [10]);
    }

    #[tokio::test]
    async fn a_worker_that_ends_gives_back_and_still_gets_what_is_on_its_way() {
        let [first, mut second] = <[_; 2]>::try_from(Spread::over(2).collect::<Vec<_>>()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let moved = || Moved {
            socket: TcpStream::connect(address).unwrap(),
            address,
            place: None,
            counted: second.count_here(),
        };
        let (on_its_way, too_late) = (moved(), moved());
        first.hand_over(on_its_way).unwrap();
        second.close();
        assert!(first.hand_over(too_late).is_err());
        assert!(second.arrival().await.is_some());
        assert!(second.arrival().await.is_none());
    }
}

//! Two versions of an application: they answer after some milliseconds, and fail or dawdle as often
//! as they are told to. Both live on one thread, so that a busy machine is equally unkind to both.

use std::{
    cell::RefCell,
    convert::Infallible,
    f64::consts::TAU,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::task;

use super::thread::Thread;

/// The backends' names.
pub(super) const NAMES: [&str; 2] = ["blue", "green"];
/// The response field that names the backend.
pub(super) const NAME_FIELD: &str = "x-backend";
/// Half of all answers take less than this: long beside what a busy machine adds, or twice as slow would
/// hardly be slower.
const MEDIAN: Duration = Duration::from_millis(40);
/// Spread of the logarithm of how long answers take; puts the 99th percentile at 2.3 times the median.
const SIGMA: f64 = 0.36;

/// How a backend behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Behaviour {
    /// Share of requests that it fails, 0 to 1.
    pub(super) failing: f64,
    /// How many times as long as usual it takes.
    pub(super) slowness: f64,
}

impl Behaviour {
    /// Fails nothing, as fast as ever.
    pub(super) const PERFECT: Self = Self { failing: 0.0, slowness: 1.0 };
}

/// What the backend's thread reads of its behaviour: failures in a million, slowness in thousandths.
#[derive(Debug)]
struct Knobs {
    failing: AtomicU32,
    slowness: AtomicU32,
}

impl Knobs {
    fn set(&self, Behaviour { failing, slowness }: Behaviour) {
        self.failing.store((failing * 1e6) as u32, Ordering::Relaxed);
        self.slowness.store((slowness * 1e3) as u32, Ordering::Relaxed);
    }

    fn get(&self) -> Behaviour {
        let read = |knob: &AtomicU32| f64::from(knob.load(Ordering::Relaxed));
        Behaviour { failing: read(&self.failing) / 1e6, slowness: read(&self.slowness) / 1e3 }
    }
}

/// Both backends; dropping them closes their sockets.
#[derive(Debug)]
pub(super) struct Backends {
    /// Where they are, in the order of [`NAMES`].
    pub(super) addresses: [SocketAddr; 2],
    knobs: [Arc<Knobs>; 2],
    _thread: Thread,
}

impl Backends {
    /// Starts both on free ports.
    ///
    /// # Errors
    /// When the system has no port or no thread left.
    pub(super) fn start() -> io::Result<Self> {
        let bind = || -> io::Result<_> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let ((blue, blue_listener), (green, green_listener)) = (bind()?, bind()?);
        let knobs = [(); 2].map(|()| {
            let knobs = Knobs { failing: AtomicU32::new(0), slowness: AtomicU32::new(0) };
            knobs.set(Behaviour::PERFECT);
            Arc::new(knobs)
        });
        let [blue_knobs, green_knobs] = knobs.clone();
        let thread = Thread::spawn("demo-backends", move || async move {
            tokio::join!(
                serve(blue_listener, NAMES[0], blue_knobs, 1),
                serve(green_listener, NAMES[1], green_knobs, 2)
            );
        })?;
        Ok(Self { addresses: [blue, green], knobs, _thread: thread })
    }

    /// From now on, the backend of this name behaves so.
    pub(super) fn set(&self, name: &str, behaviour: Behaviour) {
        if let Some(index) = NAMES.iter().position(|known| *known == name) {
            self.knobs[index].set(behaviour);
        }
    }
}

async fn serve(listener: TcpListener, name: &'static str, knobs: Arc<Knobs>, seed: u64) {
    let rng = Rc::new(RefCell::new(SmallRng::seed_from_u64(seed)));
    let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor left: others must end first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Answers are small and must not wait for each other; if it fails they are late.
        let _late = stream.set_nodelay(true);
        let (rng, knobs) = (Rc::clone(&rng), Arc::clone(&knobs));
        let answers = service_fn(move |request| answer(request, name, Rc::clone(&rng), Arc::clone(&knobs)));
        task::spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), answers));
    }
}

async fn answer(
    request: Request<Incoming>,
    name: &'static str,
    rng: Rc<RefCell<SmallRng>>,
    knobs: Arc<Knobs>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let reply = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(NAME_FIELD, http::HeaderValue::from_static(name));
        Ok(response)
    };
    if let Some(behaviour) = asked_of(request.uri().path()) {
        knobs.set(behaviour);
        let Behaviour { failing, slowness } = behaviour;
        let text = format!(
            "{name} fails {} % of requests from now on, takes {slowness} times as long\n",
            failing * 100.0
        );
        return reply(StatusCode::OK, text);
    }
    let behaviour = knobs.get();
    let (pause, fails) = {
        let mut rng = rng.borrow_mut();
        (pause(rng.random(), rng.random(), behaviour.slowness), rng.random::<f64>() < behaviour.failing)
    };
    tokio::time::sleep(pause).await;
    match fails {
        true => reply(StatusCode::INTERNAL_SERVER_ERROR, format!("{name} has failed\n")),
        false => reply(StatusCode::OK, format!("hello from {name}\n")),
    }
}

/// How whoever plays with the demo changes a backend: `/behave/well`, `/behave/badly`, `/behave/slowly`.
fn asked_of(path: &str) -> Option<Behaviour> {
    match path.strip_prefix("/behave/")? {
        "well" => Some(Behaviour::PERFECT),
        "badly" => Some(Behaviour { failing: 0.05, ..Behaviour::PERFECT }),
        "slowly" => Some(Behaviour { slowness: 2.0, ..Behaviour::PERFECT }),
        _ => None,
    }
}

/// How long an answer takes: log-normal, from two random numbers of 0 to 1 (Box and Muller 1958).
pub(super) fn pause(u: f64, v: f64, slowness: f64) -> Duration {
    // At most 4 sigma, so that nothing is slow beyond belief.
    let normal = ((-2.0 * (1.0 - u).ln()).sqrt() * (TAU * v).cos()).clamp(-4.0, 4.0);
    MEDIAN.mul_f64((SIGMA * normal).exp() * slowness)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_take_what_they_should() {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut pauses: Vec<_> = (0..10_000).map(|_| pause(rng.random(), rng.random(), 2.0)).collect();
        pauses.sort_unstable();
        let ratio = |at: usize| pauses[at].as_secs_f64() / MEDIAN.as_secs_f64();
        // The median of 10,000 has a standard error of 0.45 %, the 99th percentile one of 1.4 %.
        assert!((ratio(5_000) - 2.0).abs() < 0.04, "{}", ratio(5_000));
        assert!((ratio(9_900) - 4.62).abs() < 0.3, "{}", ratio(9_900));
    }

    #[test]
    fn the_ends_of_chance_are_finite() {
        for (u, v) in [(0.0, 0.0), (1.0, 0.0), (1.0, 0.5)] {
            assert!(pause(u, v, 1.0) < Duration::from_millis(200));
        }
    }

    #[test]
    fn knobs_return_what_they_were_given() {
        let knobs = Knobs { failing: AtomicU32::new(0), slowness: AtomicU32::new(0) };
        let behaviour = Behaviour { failing: 0.05, slowness: 2.0 };
        knobs.set(behaviour);
        assert_eq!(knobs.get(), behaviour);
    }
}

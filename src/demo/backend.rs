//! Two versions of an application: they answer after some milliseconds, and fail or dawdle as often
//! as they are told to. Both live on one thread, so that a busy machine is equally unkind to both.

use std::{
    cell::RefCell,
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
/// The share of answers that are the tail.
const TAIL: f64 = 0.05;

/// How a backend behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Behaviour {
    /// Share of requests that it fails, 0 to 1.
    pub(super) failing: f64,
    /// Share of payloads that it breaks on, 0 to 1: the same ones each time, and it answers nothing.
    pub(super) breaking: f64,
    /// How many times as long as usual it takes.
    pub(super) slowness: f64,
    /// How many times as long one answer in twenty takes on top of that. With 3.4 the 99th percentile is
    /// twice what it was, and the median about the same.
    pub(super) tail: f64,
}

impl Behaviour {
    /// Fails nothing, as fast as ever.
    pub(super) const PERFECT: Self = Self { failing: 0.0, breaking: 0.0, slowness: 1.0, tail: 1.0 };
}

/// What the backend's thread reads of its behaviour: shares in millionths, and times in thousandths.
#[derive(Debug)]
struct Knobs {
    failing: AtomicU32,
    breaking: AtomicU32,
    slowness: AtomicU32,
    tail: AtomicU32,
}

impl Knobs {
    fn new(behaviour: Behaviour) -> Self {
        let new = || AtomicU32::new(0);
        let knobs = Self { failing: new(), breaking: new(), slowness: new(), tail: new() };
        knobs.set(behaviour);
        knobs
    }

    fn set(&self, Behaviour { failing, breaking, slowness, tail }: Behaviour) {
        self.failing.store((failing * 1e6) as u32, Ordering::Relaxed);
        self.breaking.store((breaking * 1e6) as u32, Ordering::Relaxed);
        self.slowness.store((slowness * 1e3) as u32, Ordering::Relaxed);
        self.tail.store((tail * 1e3) as u32, Ordering::Relaxed);
    }

    fn get(&self) -> Behaviour {
        let read = |knob: &AtomicU32| f64::from(knob.load(Ordering::Relaxed));
        Behaviour {
            failing: read(&self.failing) / 1e6,
            breaking: read(&self.breaking) / 1e6,
            slowness: read(&self.slowness) / 1e3,
            tail: read(&self.tail) / 1e3,
        }
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
        let knobs = [(); 2].map(|()| Arc::new(Knobs::new(Behaviour::PERFECT)));
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

    /// What both of them rest on, which may give way.
    pub(super) fn ground(&self) -> Ground {
        Ground(self.knobs.clone())
    }
}

/// What both backends rest on.
#[derive(Debug)]
pub(super) struct Ground([Arc<Knobs>; 2]);

impl Ground {
    /// From now on, both behave so.
    pub(super) fn set(&self, behaviour: Behaviour) {
        self.0.iter().for_each(|knobs| knobs.set(behaviour));
    }
}

/// A backend that has broken down over a request, which ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("this payload was too much")]
struct BrokeDown;

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
) -> Result<Response<Full<Bytes>>, BrokeDown> {
    let reply = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(NAME_FIELD, http::HeaderValue::from_static(name));
        Ok(response)
    };
    if let Some(behaviour) = asked_of(request.uri().path()) {
        knobs.set(behaviour);
        let Behaviour { failing, slowness, .. } = behaviour;
        let text = format!(
            "{name} fails {} % of requests from now on, takes {slowness} times as long\n",
            failing * 100.0
        );
        return reply(StatusCode::OK, text);
    }
    let behaviour = knobs.get();
    if breaks_on(request.uri().query().unwrap_or_default(), behaviour.breaking) {
        return Err(BrokeDown);
    }
    let (pause, fails) = {
        let mut rng = rng.borrow_mut();
        let slowness = behaviour.slowness * if rng.random::<f64>() < TAIL { behaviour.tail } else { 1.0 };
        (pause(rng.random(), rng.random(), slowness), rng.random::<f64>() < behaviour.failing)
    };
    tokio::time::sleep(pause).await;
    match fails {
        true => reply(StatusCode::INTERNAL_SERVER_ERROR, format!("{name} has failed\n")),
        false => reply(StatusCode::OK, format!("hello from {name}\n")),
    }
}

/// Whether a payload is among those that a backend breaks on: by what is in it, so it always is.
fn breaks_on(payload: &str, share: f64) -> bool {
    let number: u64 = payload.bytes().fold(0, |number, byte| {
        number.wrapping_mul(31).wrapping_add(u64::from(byte)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    });
    ((number >> 11) as f64 / (1u64 << 53) as f64) < share
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
fn pause(u: f64, v: f64, slowness: f64) -> Duration {
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
    fn a_tail_doubles_the_99th_percentile_and_leaves_the_median() {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut quantiles = |tail: f64| {
            let slowness = |u: f64| if u < TAIL { tail } else { 1.0 };
            let mut pauses: Vec<_> =
                (0..20_000).map(|_| pause(rng.random(), rng.random(), slowness(rng.random()))).collect();
            pauses.sort_unstable();
            [10_000, 19_800].map(|at| pauses[at].as_secs_f64())
        };
        let ([median, p99], [tail_median, tail_p99]) = (quantiles(1.0), quantiles(3.4));
        assert!((tail_median / median - 1.0).abs() < 0.06, "{}", tail_median / median);
        assert!((tail_p99 / p99 - 2.0).abs() < 0.2, "{}", tail_p99 / p99);
    }

    #[test]
    fn the_ends_of_chance_are_finite() {
        for (u, v) in [(0.0, 0.0), (1.0, 0.0), (1.0, 0.5)] {
            assert!(pause(u, v, 1.0) < Duration::from_millis(200));
        }
    }

    #[test]
    fn knobs_return_what_they_were_given() {
        let behaviour = Behaviour { failing: 0.05, breaking: 0.005, slowness: 2.0, tail: 3.0 };
        assert_eq!(Knobs::new(behaviour).get(), behaviour);
    }

    #[test]
    fn the_same_payloads_break_it_each_time() {
        let broken = || (0..40_000).filter(|n| breaks_on(&format!("order={n}"), 0.005)).collect::<Vec<_>>();
        // Of 40,000 independent draws at 0.5 %: standard deviation 14; five of them.
        assert!((130..=270).contains(&broken().len()), "{}", broken().len());
        assert_eq!(broken(), broken());
        assert!(!breaks_on("", 0.0) && breaks_on("order=1", 1.0));
    }
}

//! The pure parts in wall time, by criterion: what a reader wants to know, and true only on a quiet
//! machine. `instructions.rs` measures the same cases where it is not quiet.

mod cases;

use std::time::Duration;

use criterion::Criterion;
use tidegate::clock;

fn main() {
    // One second a case tells apart what is worth telling, and keeps the whole under a minute.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for case in cases::ALL {
        criterion.bench_function(case.name, |bencher| {
            let mut run = (case.set_up)();
            bencher.iter_custom(|times| {
                let started = clock::monotonic();
                run(times);
                started.elapsed()
            });
        });
    }
    criterion.final_summary();
}

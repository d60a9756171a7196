//! Tidegate: a reverse proxy that splits traffic between two versions of a service, measures
//! both, and decides by itself whether the new one may stay.
//!
//! The program has two halves that meet at one seam. The **data plane** (`worker`, `proxy`,
//! `upstream`) moves requests and knows nothing of rollouts. The **control half** (`controller`,
//! `admin`) decides and never touches a request. Between them a routing snapshot goes down and
//! counts go up; nothing else crosses.
//!
//! The sections stand in reading order: a section uses only those above it, but for the two halves,
//! which never use each other.

// ── words ───────────────────────────────────────────────────────────────────────────────────
pub mod clock;
pub mod failpoint;
pub mod model;
pub mod tls;

// ── decisions: pure ─────────────────────────────────────────────────────────────────────────
pub mod analysis;
pub mod rollout;
pub mod routing;

// ── what outlives the process ───────────────────────────────────────────────────────────────
pub mod store;

// ── configuration ───────────────────────────────────────────────────────────────────────────
pub mod config;

// ── data plane ──────────────────────────────────────────────────────────────────────────────
pub mod access_log;
pub mod net;
pub mod proxy;
pub mod spans;
pub mod telemetry;
pub mod upstream;
pub mod worker;

// ── control ─────────────────────────────────────────────────────────────────────────────────
pub mod admin;
pub mod controller;

// ── front ───────────────────────────────────────────────────────────────────────────────────
pub mod app;
pub mod cli;
pub mod demo;
pub mod simulate;

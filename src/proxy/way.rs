//! A request's way from its head to a backend: the normal form of its path, its route, its backend,
//! and what the route changes in it and in its response.

use std::{rc::Rc, sync::Arc, time::Instant};

use http::{HeaderMap, HeaderValue, StatusCode, Uri, header, request, uri::PathAndQuery};

use super::{
    admission,
    assign::assign,
    client::{Busy, Client},
    context::{Context, Endpoint, View},
    error::ProxyError,
    headers,
    mirror::Mirror,
    reply::Local,
    retry::Retries,
};
use crate::{
    model::{
        failure::{Failures, GrpcStatuses},
        role::Role,
        weight::Weight,
    },
    routing::{
        condition::Head,
        filter::{End, Redirect, Route},
        limits::Limits,
        path::{Normalized, PathRules},
        snapshot::{RouteId, Service, ServiceId, Timeouts},
        split::{Assignment, Reason},
        table::Target,
    },
    telemetry::{cells::Writer, ledger::Part},
};

/// Where a request goes, and what changes for it on the way.
#[derive(Debug)]
pub(super) struct Way {
    view: Rc<View>,
    service: ServiceId,
    assignment: Assignment,
    /// The route, if it does more than lead to a service or has a label.
    route: Option<RouteId>,
    /// What the client is to remember. Seldom, so its size is not carried by every exchange.
    cookie: Option<Box<HeaderValue>>,
}

impl Way {
    /// Finds a request's way. Its path is in normal form afterwards.
    ///
    /// # Errors
    /// When it leads to no backend: the reply instead.
    pub(super) fn find(
        context: &Context,
        client: &Client,
        parts: &mut request::Parts,
    ) -> Result<Self, Local> {
        let view = context.view();
        let topology = view.snapshot.topology();
        normalize(&mut parts.uri, topology.paths())?;
        let (uri, method) = (&parts.uri, &parts.method);
        let head = Head {
            authority: headers::authority(parts)?,
            path: uri.path(),
            query: uri.query(),
            method,
            headers: &parts.headers,
        };
        let (service, route) = match topology.find(&head).ok_or(ProxyError::NoRoute)? {
            Target::Service(service) => (service, None),
            Target::Route(id) => match &topology.route(id).end {
                End::Service(service) => (*service, Some(id)),
                End::Redirect(redirect) => return Err(send_elsewhere(redirect, &head)),
            },
        };
        let (assignment, cookie) = assign(context, client, &view, service, &head)?;
        Ok(Self { view, service, assignment, route, cookie: cookie.map(Box::new) })
    }

    /// The snapshot by which it was found, and what the worker has for it.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The service that it leads to.
    pub(super) fn service(&self) -> &Service {
        self.view.snapshot.topology().service(self.service)
    }

    /// Lets the request in, where the service or the route has limits.
    ///
    /// # Errors
    /// When one of them has as many requests as it takes.
    pub(super) fn admit(
        &self,
        busy: &mut Busy,
        client: &Client,
        parts: &request::Parts,
        now: Instant,
    ) -> Result<(), ProxyError> {
        let route = self.route.and_then(|id| self.view.route_gate(id));
        let gate = self.view.gate(self.service);
        if route.is_some() || gate.is_some() {
            busy.keep(admission::admit(route, gate, || client.address(&parts.headers), now)?);
        }
        Ok(())
    }

    /// The backend that it leads to.
    pub(super) fn assignment(&self) -> Assignment {
        self.assignment
    }

    /// The same with the stable backend, where the canary has failed.
    pub(super) fn shielded(&self) -> Assignment {
        let backend = self.view.snapshot.split(self.service).stable;
        Assignment { backend, role: Role::Stable, reason: Reason::Shield, half: None, slot: None }
    }

    /// Where another try goes whose last one was assigned so: to stable, if by the newest snapshot its backend
    /// gets nobody any more, such as a canary that was rolled back meanwhile. Who was sent to the canary by a rule
    /// goes on there. What a reload has changed is not looked into: the ids are others.
    pub(super) fn again(&self, last: Assignment, newest: &View) -> Assignment {
        let (snapshot, newest) = (&self.view.snapshot, &newest.snapshot);
        if !Arc::ptr_eq(snapshot.topology(), newest.topology()) {
            return last;
        }
        let split = newest.split(self.service);
        let is_wanted = last.role == Role::Canary && !last.reason.is_drawn();
        let has_users = split.canary == Some(last.backend) && split.weight > Weight::ZERO;
        if is_wanted || has_users || split.stable == last.backend {
            return last;
        }
        Assignment { backend: split.stable, role: Role::Stable, half: None, ..last }
    }

    /// The right to count an attempt at an endpoint to which it, or this, leads; and the client's slot, if it is
    /// pinned.
    pub(super) fn writer(&self, to: Assignment, endpoint: &Endpoint, now: Instant) -> (Writer, Option<u16>) {
        let part = if endpoint.is_warming(now) {
            Part::Warming
        } else if let Some(half) = to.half {
            Part::Half(half)
        } else {
            let route = self.route().and_then(|route| route.counted);
            if to.reason.is_drawn() {
                route.map_or(Part::Rest, Part::Route)
            } else {
                route.map_or(Part::Sent, Part::SentRoute)
            }
        };
        (self.view.writer(to.backend, to.role, part), to.slot)
    }

    /// The right to count a copy at the backend to which it leads.
    pub(super) fn copies_writer(&self) -> Writer {
        self.view.writer(self.assignment.backend, self.assignment.role, Part::Copies)
    }

    /// The backend that it leads to has no endpoint for it.
    pub(super) fn unserved(&self) {
        let Assignment { backend, role, .. } = self.assignment;
        self.view.writer(backend, role, Part::Rest).unserved();
    }

    /// From now on, it leads there.
    pub(super) fn assign(&mut self, assignment: Assignment) {
        self.assignment = assignment;
    }

    /// What its requests are tried again with, if they are.
    pub(super) fn retries(&self) -> Option<&Rc<Retries>> {
        self.view.retries(self.service)
    }

    /// What its requests are copied with, if they are.
    #[inline]
    pub(super) fn mirror(&self) -> Option<&Rc<Mirror>> {
        self.view.mirror(self.service)
    }

    /// The share of stable's requests that the canary gets copies of for its rollout.
    pub(super) fn copies(&self) -> Weight {
        self.view.snapshot.split(self.service).copies
    }

    /// The same way to the canary, if it leads to stable and there is a canary.
    pub(super) fn aside(&self) -> Option<Self> {
        let Assignment { backend: _, role, reason, .. } = self.assignment;
        let split = self.view.snapshot.split(self.service);
        let canary = split.by_role(Role::Canary, reason).filter(|_| role == Role::Stable)?;
        let (view, service, route) = (Rc::clone(&self.view), self.service, self.route);
        Some(Self { view, service, assignment: canary, route, cookie: None })
    }

    /// The route, if it does more than lead to a service or has a label.
    pub(super) fn route(&self) -> Option<&Route> {
        self.route.map(|id| self.view.snapshot.topology().route(id))
    }

    fn failures(&self) -> Option<&Failures> {
        let route = self.route().and_then(|route| route.failures.as_deref());
        route.or_else(|| self.service().failures.as_deref())
    }

    /// Whether a response with this status counts against the backend, where that is written; a call that
    /// was answered with 200 has a status of its own.
    #[inline]
    pub(super) fn fails(&self, status: StatusCode, is_call: bool) -> Option<bool> {
        let failures = self.failures()?;
        (!is_call || status != StatusCode::OK).then(|| failures.statuses.contains(status.as_u16()))
    }

    /// How calls end that count against the backend.
    pub(super) fn grpc_failures(&self) -> GrpcStatuses {
        self.failures().map_or(GrpcStatuses::SERVERS_FAULT, |failures| failures.grpc)
    }

    /// How long the backend may take.
    pub(super) fn timeouts(&self) -> Timeouts {
        let timeouts = self.service().timeouts;
        self.route().map_or(timeouts, |route| route.timeouts.over(timeouts))
    }

    /// How much may be asked for; rates have been looked at.
    pub(super) fn limits(&self) -> Limits {
        let limits = self.service().limits;
        self.route().map_or(limits, |route| route.limits.over(limits))
    }

    /// Makes the route's changes to a request that is ready to be sent otherwise.
    ///
    /// # Errors
    /// When what comes out is no target; the configuration does not let that happen.
    pub(super) fn change_request(&self, parts: &mut request::Parts) -> Result<(), ProxyError> {
        let Some(route) = self.route() else { return Ok(()) };
        if let Some(rewrite) = &route.path {
            let target = rewrite.apply(parts.uri.path(), parts.uri.query());
            set_target(&mut parts.uri, target)?;
        }
        // `X-Forwarded-Host` keeps the one that the client asked for.
        if let Some(hostname) = &route.hostname {
            parts.headers.insert(header::HOST, hostname.clone());
        }
        route.request.apply(&mut parts.headers);
        Ok(())
    }

    /// Makes the route's changes to a response, and adds what the service adds.
    pub(super) fn change_response(&mut self, headers: &mut HeaderMap) {
        if let Some(route) = self.route() {
            route.response.apply(headers);
        }
        let topology = self.view.snapshot.topology();
        if let Some(name) = &self.service().backend_header {
            headers.insert(name, topology.label(self.assignment.backend).clone());
        }
        if let Some(cookie) = self.cookie.take() {
            headers.append(header::SET_COOKIE, *cookie);
        }
    }
}

/// Brings the path into its normal form.
fn normalize(uri: &mut Uri, rules: PathRules) -> Result<(), Local> {
    let (path, redirected) = match rules.apply(uri.path()).map_err(|_| ProxyError::BadPath)? {
        Normalized::Forward(std::borrow::Cow::Borrowed(_)) => return Ok(()),
        Normalized::Forward(std::borrow::Cow::Owned(path)) => (path, false),
        Normalized::Redirect(path) => (path, true),
    };
    if redirected {
        let location = Redirect::NOWHERE_ELSE.location("", &path, uri.query());
        let location = location.ok_or(ProxyError::BadPath)?;
        return Err(Local::Redirect(Redirect::NOWHERE_ELSE.status, location));
    }
    let target = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    Ok(set_target(uri, target)?)
}

fn set_target(uri: &mut Uri, target: String) -> Result<(), ProxyError> {
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| ProxyError::BadPath)?);
    *uri = Uri::from_parts(parts).map_err(|_| ProxyError::BadPath)?;
    Ok(())
}

fn send_elsewhere(redirect: &Redirect, head: &Head<'_>) -> Local {
    match redirect.location(head.authority, head.path, head.query) {
        Some(location) => Local::Redirect(redirect.status, location),
        None => ProxyError::BadHost.into(),
    }
}

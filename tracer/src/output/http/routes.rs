//! What is answered at which path.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{
        HeaderMap, Method, StatusCode, Uri,
        header::{CONNECTION, HOST, HeaderValue, RETRY_AFTER},
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};

use super::{
    guard::{self, Guard, HEALTH},
    index::{self, Reach},
    metrics::Metrics,
    reply,
    snapshots::{Failure, Snapshots},
    source::{ProfileName, Source, SourceError, TargetSummary},
    text,
};
use crate::{
    profile::{Profile, encode_gz},
    text::printable,
};

/// The longest time of a delta.
const MAX_SECONDS: u64 = 3600;

/// What the routes need.
pub(super) struct App<S> {
    pub(super) snapshots: Snapshots<S>,
    pub(super) metrics: Metrics,
    /// What the server listens at.
    pub(super) place: Place,
}

/// What the server listens at, as the commands on its pages need it.
pub(super) enum Place {
    /// A socket in the file system.
    Socket(String),
    /// An address, with TLS or without.
    Network {
        /// Whether it is TLS.
        tls: bool,
    },
}

/// All routes, behind the guard.
pub(super) fn router<S: Source>(app: Arc<App<S>>, guard: Arc<Guard>) -> Router {
    let metrics = app.metrics.clone();
    Router::new()
        .route("/", get(targets_page::<S>))
        .route("/targets", get(targets_json::<S>))
        .route("/targets/{id}", get(to_profiles::<S>))
        .route("/targets/{id}/", get(to_profiles::<S>))
        .route("/targets/{id}/debug/pprof", get(to_profiles::<S>))
        .route("/targets/{id}/debug/pprof/", get(profiles_page::<S>))
        .route("/targets/{id}/debug/pprof/{name}", get(profile::<S>))
        .route("/debug/pprof", get(to_only_profiles::<S>))
        .route("/debug/pprof/", get(only_profiles_page::<S>))
        .route("/debug/pprof/{name}", get(only_profile::<S>))
        .route("/metrics", get(metrics_text::<S>))
        .route(HEALTH, get(async || reply::text("ok\n".to_owned())))
        .fallback(async || {
            reply::error(
                StatusCode::NOT_FOUND,
                "there is nothing here; / lists the targets",
            )
        })
        .with_state(app)
        .layer(from_fn_with_state(guard, guard::admit))
        .layer(from_fn_with_state(metrics, finish))
}

/// Completes, counts and logs each answer. Queries are not logged, nor is anything of the headers.
async fn finish(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    reply::complete(&mut response);
    let status = response.status();
    metrics.answered(status.as_u16());
    let level = match status.is_server_error() {
        true => log::Level::Warn,
        false => log::Level::Info,
    };
    log::log!(
        level,
        "http: {} {} {} in {} ms",
        printable(method.as_str()),
        printable(&path),
        status.as_u16(),
        began.elapsed().as_millis()
    );
    response
}

async fn targets_page<S: Source>(State(app): State<Arc<App<S>>>) -> Response {
    reply::html(index::targets(&app.snapshots.source().targets()))
}

async fn targets_json<S: Source>(State(app): State<Arc<App<S>>>) -> Response {
    reply::json(&index::json(&app.snapshots.source().targets()))
}

async fn metrics_text<S: Source>(State(app): State<Arc<App<S>>>) -> Response {
    match app.metrics.text() {
        Ok(text) => reply::metrics(text),
        Err(error) => reply::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn to_profiles<S: Source>(State(app): State<Arc<App<S>>>, Path(id): Path<String>) -> Response {
    match app.target(&id) {
        Ok(target) => Redirect::permanent(&index::path_of(&target)).into_response(),
        Err(response) => *response,
    }
}

async fn to_only_profiles<S: Source>(State(app): State<Arc<App<S>>>) -> Response {
    match app.only_target() {
        Ok(_) => Redirect::permanent("/debug/pprof/").into_response(),
        Err(response) => *response,
    }
}

async fn profiles_page<S: Source>(
    State(app): State<Arc<App<S>>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let target = app.target(&id);
    target.map_or_else(
        |response| *response,
        |target| app.profiles_page(&target, &headers),
    )
}

async fn only_profiles_page<S: Source>(State(app): State<Arc<App<S>>>, headers: HeaderMap) -> Response {
    let target = app.only_target();
    target.map_or_else(
        |response| *response,
        |target| app.profiles_page(&target, &headers),
    )
}

async fn profile<S: Source>(
    State(app): State<Arc<App<S>>>,
    Path((id, name)): Path<(String, String)>,
    method: Method,
    uri: Uri,
) -> Response {
    match app.target(&id) {
        Ok(target) => app.profile(&target, &name, &method, &uri).await,
        Err(response) => *response,
    }
}

async fn only_profile<S: Source>(
    State(app): State<Arc<App<S>>>,
    Path(name): Path<String>,
    method: Method,
    uri: Uri,
) -> Response {
    match app.only_target() {
        Ok(target) => app.profile(&target, &name, &method, &uri).await,
        Err(response) => *response,
    }
}

impl<S: Source> App<S> {
    fn target(&self, id: &str) -> Result<TargetSummary, Box<Response>> {
        let mut targets = self.snapshots.source().targets();
        match targets.iter().position(|target| target.id == id) {
            Some(at) => Ok(targets.swap_remove(at)),
            None => Err(not_found(&format!(
                "this target is not traced; {}",
                index::list(&targets)
            ))),
        }
    }

    /// The target that needs no name, because there is no other.
    fn only_target(&self) -> Result<TargetSummary, Box<Response>> {
        let targets = self.snapshots.source().targets();
        let mut traced = targets.iter().filter(|target| !target.profiles.is_empty());
        match (traced.next(), traced.next()) {
            (Some(only), None) => Ok(only.clone()),
            _ => Err(not_found(&format!(
                "/debug/pprof/ is there when exactly one target is traced; {}",
                index::list(&targets)
            ))),
        }
    }

    fn profiles_page(&self, target: &TargetSummary, headers: &HeaderMap) -> Response {
        let reach = match &self.place {
            Place::Socket(path) => Reach::Socket(path.clone()),
            Place::Network { tls } => {
                let scheme = if *tls { "https" } else { "http" };
                // The guard has looked at it.
                let host = headers.get(HOST).and_then(|host| host.to_str().ok());
                Reach::Network(format!("{scheme}://{}", host.unwrap_or("localhost")))
            }
        };
        reply::html(index::profiles(target, &reach))
    }

    async fn profile(&self, target: &TargetSummary, name: &str, method: &Method, uri: &Uri) -> Response {
        let (name, ask) = match (named(target, name), Ask::parse(uri.query().unwrap_or(""))) {
            (Ok(name), Ok(ask)) => (name, ask),
            (Err(response), _) => return *response,
            (_, Err(why)) => return reply::error(StatusCode::BAD_REQUEST, why),
        };
        // Whoever asks for headers only does not need a snapshot.
        if method == Method::HEAD {
            return match ask.debug {
                true => reply::text(String::new()),
                false => reply::profile(name.as_str(), ask.seconds.is_some(), Vec::new()),
            };
        }
        self.answer(target, name, ask)
            .await
            .unwrap_or_else(|failure| failed(&failure))
    }

    async fn answer(&self, target: &TargetSummary, name: ProfileName, ask: Ask) -> Result<Response, Failure> {
        let source = name.made_of();
        if ask.debug {
            let render = move |profile: &Profile| text::text(profile, name.as_str());
            let text = self.snapshots.now(&target.id, source, render).await?;
            return text
                .map(reply::text)
                .map_err(|error| SourceError::Failed(error.to_string()).into());
        }
        let render = move |profile: &Profile| match name {
            ProfileName::Allocs => encode_gz(&shown_first(profile, "alloc_space")),
            _ => encode_gz(profile),
        };
        let bytes = match ask.seconds {
            Some(time) => self.snapshots.over(time, &target.id, source, render).await?,
            None => self.snapshots.now(&target.id, source, render).await?,
        };
        Ok(reply::profile(name.as_str(), ask.seconds.is_some(), bytes))
    }
}

/// What the query asks for. `gc` is taken and does nothing: memtrace does not make a program collect its garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ask {
    /// The time of a delta.
    seconds: Option<Duration>,
    /// Whether text is wanted.
    debug: bool,
}

impl Ask {
    fn parse(query: &str) -> Result<Self, &'static str> {
        let value = |name: &str| {
            let mut pairs = form_urlencoded::parse(query.as_bytes());
            pairs.find(|(key, _)| key == name).map(|(_, value)| value)
        };
        let seconds = match value("seconds") {
            Some(text) if !text.is_empty() => match text.parse() {
                Ok(seconds @ 1..=MAX_SECONDS) => Some(Duration::from_secs(seconds)),
                _ => return Err("invalid value for \"seconds\" - must be a whole number from 1 to 3600"),
            },
            _ => None,
        };
        let debug = value("debug").is_some_and(|text| text.parse::<i64>().is_ok_and(|level| level != 0));
        match (seconds, debug) {
            (Some(_), true) => Err("seconds and debug params are incompatible"),
            _ => Ok(Self { seconds, debug }),
        }
    }
}

/// The profile of this name, if the target has it.
fn named(target: &TargetSummary, name: &str) -> Result<ProfileName, Box<Response>> {
    let why = match name {
        "cmdline" => "memtrace does not show command lines",
        "profile" => "memtrace makes no CPU profiles; perf does",
        "trace" => "memtrace makes no execution traces",
        "symbol" => "memtrace's profiles have their symbols",
        "block" | "mutex" | "goroutineleak" => "memtrace makes no such profile",
        _ => match ProfileName::parse(name) {
            Some(name) if target.has(name) => return Ok(name),
            Some(_) => "this target has no such profile",
            None => "Unknown profile",
        },
    };
    let names: Vec<&str> = target.names().map(ProfileName::as_str).collect();
    let there = match names.is_empty() {
        true => "none now".to_owned(),
        false => names.join(", "),
    };
    Err(not_found(&format!(
        "{why}; the profiles of this target are: {there}"
    )))
}

/// The profile with another sample type first in viewers.
fn shown_first(profile: &Profile, name: &str) -> Profile {
    let mut changed = profile.clone();
    let index = profile.string_table.iter().position(|text| text == name);
    if let Some(index) = index.and_then(|index| i64::try_from(index).ok()) {
        changed.default_sample_type = index;
    }
    changed
}

fn not_found(why: &str) -> Box<Response> {
    Box::new(reply::error(StatusCode::NOT_FOUND, why))
}

fn failed(failure: &Failure) -> Response {
    let status = match failure {
        Failure::Busy => StatusCode::TOO_MANY_REQUESTS,
        Failure::Stopping | Failure::Source(SourceError::Busy(_)) => StatusCode::SERVICE_UNAVAILABLE,
        Failure::Source(SourceError::Gone | SourceError::NotAvailable(_)) => StatusCode::NOT_FOUND,
        Failure::Source(SourceError::Failed(_)) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut response = reply::error(status, &failure.to_string());
    let headers = response.headers_mut();
    match failure {
        Failure::Busy | Failure::Source(SourceError::Busy(_)) => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Failure::Stopping => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Failure::Source(_) => {}
    }
    response
}

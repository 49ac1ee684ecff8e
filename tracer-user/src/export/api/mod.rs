//! The JSON API below `/api/v1`: [`model`] what the answers look like, [`query`] what can be asked, [`view`] the answers,
//! made where the ledger lives, [`openapi`] the description.

pub mod causes;
pub mod error;
pub mod model;
pub mod openapi;
pub mod query;
pub mod recent;
#[cfg(test)]
mod tests;
pub mod view;

use axum::extract::State;
use axum::{Json, Router};
use tracer_common::counters::{Counter, Stage};

use self::error::ApiError;
use self::model::{
    CauseInfo, Epoch, EpochDetail, Incidents, Kernel, List, Loss, Probe, Process, ProcessDetail, Ranges,
    Usage,
};
use self::openapi::{BASE, Operation, Routes, of, parameters_of};
use self::query::{
    Asked, EpochName, EpochPath, Id, IncidentsQuery, Named, NoQuery, PageQuery, ProcessPath, ProcessesQuery,
};
use self::view::{Missing, View};
use super::http::Exporter;
use super::metrics::reading::Reading;
use super::page::map::{Map, MapQuery, map};
use crate::probes::verdict::{ProbeVerdict, Verdict};
use crate::processes;

/// Where the description is.
const DESCRIPTION: &str = "/openapi.json";

type Answer<T> = Result<Json<T>, ApiError>;

/// What is asked of the owner of the ledger, and answered there.
type Look<T> = Result<T, ApiError>;

fn routes() -> Routes<Exporter> {
    with_map(Routes::default())
        .get(
            Operation {
                path: "/processes",
                id: "list_processes",
                summary: "Tracked processes",
                named: None,
                asked: parameters_of::<ProcessesQuery>,
                answer: of::<List<Process>>,
                asks_owner: true,
            },
            processes,
        )
        .get(
            Operation {
                path: "/processes/{id}",
                id: "get_process",
                summary: "One process, and what is found in its open epoch",
                named: Some(parameters_of::<ProcessPath>),
                asked: parameters_of::<NoQuery>,
                answer: of::<ProcessDetail>,
                asks_owner: true,
            },
            process,
        )
        .get(
            Operation {
                path: "/processes/{id}/epochs",
                id: "list_epochs",
                summary: "The epochs of a process, newest first",
                named: Some(parameters_of::<ProcessPath>),
                asked: parameters_of::<PageQuery>,
                answer: of::<List<Epoch>>,
                asks_owner: true,
            },
            epochs,
        )
        .get(
            Operation {
                path: "/processes/{id}/epochs/{epoch}",
                id: "get_epoch",
                summary: "One epoch with all that is known of it",
                named: Some(parameters_of::<EpochPath>),
                asked: parameters_of::<NoQuery>,
                answer: of::<EpochDetail>,
                asks_owner: true,
            },
            epoch,
        )
        .get(
            Operation {
                path: "/processes/{id}/epochs/{epoch}/ranges",
                id: "list_ranges",
                summary: "The addresses of an epoch to dump again",
                named: Some(parameters_of::<EpochPath>),
                asked: parameters_of::<PageQuery>,
                answer: of::<Ranges>,
                asks_owner: true,
            },
            ranges,
        )
        .get(
            Operation {
                path: "/incidents",
                id: "list_incidents",
                summary: "The newest incidents, newest first",
                named: None,
                asked: parameters_of::<IncidentsQuery>,
                answer: of::<Incidents>,
                asks_owner: true,
            },
            incidents,
        )
        .get(
            Operation {
                path: "/kernel",
                id: "get_kernel",
                summary: "The kernel, the probes, what was lost",
                named: None,
                asked: parameters_of::<NoQuery>,
                answer: of::<Kernel>,
                asks_owner: true,
            },
            kernel,
        )
        .get(
            Operation {
                path: "/causes",
                id: "list_causes",
                summary: "The closed list of what makes soft-dirty miss a write",
                named: None,
                asked: parameters_of::<NoQuery>,
                answer: of::<List<CauseInfo>>,
                asks_owner: false,
            },
            causes,
        )
}

/// Adds what only a picture of the memory needs.
fn with_map(routes: Routes<Exporter>) -> Routes<Exporter> {
    routes
        .get(
            Operation {
                path: "/processes/{id}/map",
                id: "get_map",
                summary: "The address space: VMAs, pages written in the newest epoch, pages whose writes were or can be missed",
                named: Some(parameters_of::<ProcessPath>),
                asked: parameters_of::<MapQuery>,
                answer: of::<Map>,
                asks_owner: true,
            },
            map,
        )
}

/// The description of the API, as docs/openapi.json has it.
///
/// # Errors
/// If it cannot be written.
pub fn description() -> serde_json::Result<String> {
    let (_, description) = routes().finish();
    Ok(serde_json::to_string_pretty(&description)? + "\n")
}

/// The routes below `/api/v1`.
pub fn router() -> Router<Exporter> {
    let (router, description) = routes().finish();
    let described = move |Asked(NoQuery {}): Asked<NoQuery>| async move { Json(description) };
    let router = router
        .route(DESCRIPTION, axum::routing::get(described))
        .fallback(async || {
            ApiError::not_found(format!(
                "there is no such path; {BASE}{DESCRIPTION} lists those that there are"
            ))
        })
        .method_not_allowed_fallback(async || ApiError::method_not_allowed());
    Router::new().nest(BASE, router)
}

async fn processes(
    State(exporter): State<Exporter>,
    Asked(query): Asked<ProcessesQuery>,
) -> Answer<List<Process>> {
    look(&exporter, move |view| Ok(view.processes(&query))).await
}

async fn process(
    State(exporter): State<Exporter>,
    Named(path): Named<ProcessPath>,
    Asked(NoQuery {}): Asked<NoQuery>,
) -> Answer<ProcessDetail> {
    look(&exporter, move |view| {
        view.process(path.id.get()).ok_or_else(|| no_process(path.id))
    })
    .await
}

async fn epochs(
    State(exporter): State<Exporter>,
    Named(path): Named<ProcessPath>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<Epoch>> {
    look(&exporter, move |view| {
        view.epochs(path.id.get(), query.page())
            .ok_or_else(|| no_process(path.id))
    })
    .await
}

async fn epoch(
    State(exporter): State<Exporter>,
    Named(path): Named<EpochPath>,
    Asked(NoQuery {}): Asked<NoQuery>,
) -> Answer<EpochDetail> {
    look(&exporter, move |view| {
        view.epoch(path.id.get(), path.epoch)
            .map_err(|missing| no_epoch(missing, path))
    })
    .await
}

async fn ranges(
    State(exporter): State<Exporter>,
    Named(path): Named<EpochPath>,
    Asked(query): Asked<PageQuery>,
) -> Answer<Ranges> {
    look(&exporter, move |view| {
        view.ranges(path.id.get(), path.epoch, query.page())
            .map_err(|missing| no_epoch(missing, path))
    })
    .await
}

async fn incidents(
    State(exporter): State<Exporter>,
    Asked(query): Asked<IncidentsQuery>,
) -> Answer<Incidents> {
    look(&exporter, move |view| Ok(view.incidents(&query))).await
}

async fn causes(Asked(NoQuery {}): Asked<NoQuery>) -> Json<List<CauseInfo>> {
    Json(List {
        items: causes::causes().to_vec(),
        next_cursor: None,
    })
}

async fn kernel(State(exporter): State<Exporter>, Asked(NoQuery {}): Asked<NoQuery>) -> Answer<Kernel> {
    let reading = exporter.source.reading().await?;
    let readiness = exporter.source.readiness();
    Ok(Json(Kernel {
        ready: readiness.ready,
        reasons: readiness.reasons,
        ..kernel_of(&reading)
    }))
}

/// Has the owner of the ledger look something up.
async fn look<T: Send + 'static>(
    exporter: &Exporter,
    question: impl FnOnce(&View<'_>) -> Look<T> + Send + 'static,
) -> Answer<T> {
    exporter.source.look(question).await?.map(Json)
}

pub(super) fn no_process(id: Id) -> ApiError {
    ApiError::not_found(format!(
        "sdtrace knows no address space {}, or does not keep it any more; {BASE}/processes?state=all lists those it knows",
        id.get()
    ))
}

fn no_epoch(missing: Missing, path: EpochPath) -> ApiError {
    let id = path.id.get();
    match (missing, path.epoch) {
        (Missing::Process, _) => no_process(path.id),
        (Missing::Epoch, EpochName::Last) => ApiError::not_found(format!(
            "no epoch of address space {id} has ended yet; the next clear ends one"
        )),
        (Missing::Epoch, EpochName::Open) => ApiError::not_found(format!(
            "address space {id} has no open epoch: it was torn down; ask for `last`"
        )),
        (Missing::Epoch, EpochName::Number(number)) => ApiError::not_found(format!(
            "address space {id} has no epoch {number}, or it is not kept any more (--keep-epochs); \
             {BASE}/processes/{id}/epochs lists those that are"
        )),
    }
}

fn kernel_of(reading: &Reading) -> Kernel {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let missed = reading.missed.iter().filter_map(|missed| missed.count).sum();
    let stages = Stage::ALL.map(|stage| (stage.label(), reading.counters.get(Counter::Stage(stage))));
    let others = [
        ("undecodable", reading.undecodable),
        ("missed_probe_runs", missed),
    ];
    Kernel {
        release: processes::kernel_release(),
        sdtrace_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id.ok().map(|id| id.trim().to_owned()),
        pid_namespace: processes::pid_namespace().ok(),
        ready: false,
        reasons: Vec::new(),
        complete: !reading.ledger.incomplete,
        probes: reading.verdicts.iter().map(probe).collect(),
        losses: stages
            .into_iter()
            .chain(others)
            .map(|(stage, count)| Loss {
                stage: stage.to_owned(),
                count,
            })
            .collect(),
        uncounted_probes: reading
            .missed
            .iter()
            .filter(|missed| missed.count.is_none())
            .count() as u64,
        maps: reading
            .maps
            .iter()
            .map(|usage| Usage {
                map: usage.map.to_owned(),
                entries: usage.entries,
                capacity: usage.capacity,
            })
            .collect(),
    }
}

fn probe(probe: &ProbeVerdict) -> Probe {
    let why = match &probe.verdict {
        Verdict::Attached { .. } => None,
        Verdict::Unsupported { why } | Verdict::Broken { why } => Some(why.clone()),
    };
    Probe {
        probe: probe.probe.clone(),
        required: probe.required,
        verdict: probe.verdict.label().to_owned(),
        mechanism: probe
            .verdict
            .mechanism()
            .map(|mechanism| mechanism.label().to_owned()),
        why: why.or_else(|| probe.fell_back_because.clone()),
    }
}

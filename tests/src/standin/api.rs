//! The stand-in's HTTP: each request is held against the provider's text, each answer too.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State as Extract;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use ternfleet_cloud::time::{from_rfc3339, to_rfc3339};
use ternfleet_proto::TimeMs;
use tokio::net::TcpListener;

use super::pod::{Pod, fine, run};
use super::{Fault, Shared};

/// The provider refuses larger orders.
const BODY_BYTES_MAX: usize = 100 << 10;
const ENV_MAX: usize = 50;
const RETRY_AFTER_S: u64 = 1;

/// Who asks.
#[derive(Debug, PartialEq, Eq)]
enum Asker {
    Account,
    /// The pod of that id, by the key that it was given.
    Pod(String),
}

pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let router = Router::new().fallback(answer).with_state(shared);
    // It ends with the runtime.
    let _ = axum::serve(listener, router).await;
}

async fn answer(
    Extract(shared): Extract<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    if let Some(name) = path.strip_prefix("/files/") {
        shared.state().fetched.push(name.to_owned());
        return match shared.files.get(name).map(std::fs::read) {
            Some(Ok(content)) => content.into_response(),
            _ => problem(404, "no such file"),
        };
    }
    let Some(asker) = asker(&shared, &headers) else { return problem(401, "the key is not known") };
    let query: BTreeMap<String, String> = uri
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (method.as_str(), parts.as_slice()) {
        ("POST", ["v2", "pods"]) if asker == Asker::Account => create(&shared, &body),
        ("GET", ["v2", "pods"]) if asker == Asker::Account => list(&shared, &query),
        ("GET", ["v2", "pods", id]) if may(&asker, id) => show(&shared, id),
        ("GET", ["v2", "pods", id, "logs"]) if may(&asker, id) => logs(&shared, id, &query),
        ("DELETE", ["v2", "pods", id]) if may(&asker, id) => delete(&shared, id).await,
        ("POST", ["v2", "pods", id, "action"]) if may(&asker, id) => action(&shared, id, &body).await,
        ("GET", ["v2", "catalog", "gpus"]) => gpus(&shared, &query),
        ("GET", ["v2", "catalog", "cpus"]) => cpus(&shared),
        ("GET", ["v2", "billing", "pods"]) if asker == Asker::Account => billing(&shared, &query),
        (_, ["v2", ..]) if asker != Asker::Account => problem(403, "this key is a pod's"),
        _ => problem(404, "no such path"),
    }
}

fn asker(shared: &Shared, headers: &HeaderMap) -> Option<Asker> {
    let key = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
    if key == shared.key {
        return Some(Asker::Account);
    }
    let state = shared.state();
    let pod = state.pods.iter().find(|pod| pod.ended_at.is_none() && pod.key() == key)?;
    Some(Asker::Pod(pod.id.clone()))
}

fn may(asker: &Asker, id: &str) -> bool {
    match asker {
        Asker::Account => true,
        Asker::Pod(own) => own == id,
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.extend(u8::from_str_radix(&digits, 16));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn problem(status: u16, detail: &str) -> Response {
    refusal(status, detail, &[])
}

fn refusal(status: u16, detail: &str, errors: &[String]) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let title = status.canonical_reason().unwrap_or("Problem");
    let body = json!({"title": title, "status": status.as_u16(), "detail": detail, "errors": errors});
    let mut response =
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S.into());
    }
    response
}

/// An answer that is what the text says.
fn told(shared: &Shared, status: StatusCode, schema: &str, body: &Value) -> Response {
    let faults = shared.text.faults(schema, body);
    shared.state().faults.extend(faults.into_iter().map(|fault| format!("{schema}: {fault}")));
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn create(shared: &Arc<Shared>, body: &[u8]) -> Response {
    if body.len() > BODY_BYTES_MAX {
        return problem(413, "the request is too large");
    }
    let Ok(order) = serde_json::from_slice::<Value>(body) else {
        return problem(400, "the body is not JSON");
    };
    shared.state().orders.push(order.clone());
    let fault = shared.state().creations.pop_front().flatten();
    shared.state().played.extend(fault.map(Fault::kind));
    if let Some(Fault::Refuse(status)) = fault {
        return problem(status, "refused for the test");
    }
    let mut faults = shared.text.faults("CreatePodRequest", &order);
    if order["env"].as_object().is_some_and(|env| env.len() > ENV_MAX) {
        faults.push(format!("$.env: more than {ENV_MAX} variables"));
    }
    if !faults.is_empty() {
        return refusal(422, "the request is not valid", &faults);
    }
    let id = match rent(shared, &order, fault) {
        Ok(id) => id,
        Err((status, why)) => return problem(status, &why),
    };
    shared.runtime.spawn(run(Arc::clone(shared), id.clone()));
    match fault {
        Some(Fault::DoneBut(status)) => problem(status, "failed upstream"),
        // A body that never comes to its end: the connection breaks.
        Some(Fault::DoneAndCut) => {
            let parts = [Ok("{"), Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))];
            (StatusCode::CREATED, Body::from_stream(futures::stream::iter(parts))).into_response()
        }
        _ => match view(shared, &id) {
            Some(view) => told(shared, StatusCode::CREATED, "Pod", &view),
            None => problem(404, "pod not found"),
        },
    }
}

/// The rules that no schema tells.
fn rent(shared: &Shared, order: &Value, fault: Option<Fault>) -> Result<String, (u16, String)> {
    let now = TimeMs::now();
    let mut state = shared.state();
    let market = state.market.clone();
    let of_gpu = !order["gpu"].is_null();
    if of_gpu != order["cpu"].is_null() {
        return Err((400, "exactly one of gpu and cpu must be given".to_owned()));
    }
    if !of_gpu && (order["cloud"] == "COMMUNITY" || !order["mounts"]["persistent"].is_null()) {
        return Err((400, "CPU pods are of the secure cloud and take no persistent mount".to_owned()));
    }
    if order["cloud"] == "COMMUNITY" && !order["mounts"]["network"].is_null() {
        return Err((400, "network volumes exist in the secure cloud only".to_owned()));
    }
    let image = order["image"].as_str().unwrap_or_default();
    if !shared.images.contains_key(image) {
        return Err((400, format!("image {image:?} cannot be pulled")));
    }
    let price = if of_gpu {
        if order["gpu"]["id"] != market.gpu.as_str() {
            return Err((400, "there are no instances available".to_owned()));
        }
        market.gpu_usd_micro_per_hour * order["gpu"]["count"].as_i64().unwrap_or(1)
    } else {
        let vcpus = order["cpu"]["vcpuCount"].as_i64().unwrap_or(0);
        if order["cpu"]["id"] != market.cpu.as_str() || vcpus > 32 || vcpus.count_ones() != 1 {
            return Err((400, "there are no instances available".to_owned()));
        }
        market.usd_micro_per_vcpu_hour * vcpus
    };
    let spent: i64 = state.pods.iter().map(|pod| pod.billed_usd_micro(now)).sum();
    if spent >= market.balance_usd_micro {
        return Err((402, "the balance is used up".to_owned()));
    }
    if state.pods.iter().filter(|pod| pod.ended_at.is_none()).count() >= market.capacity {
        return Err((400, "there are no instances available".to_owned()));
    }
    state.next += 1;
    let number = state.next;
    let id = format!("pod{number:04}");
    state.pods.push(Pod {
        log: shared.folder.path().join(format!("{id}.log")),
        name: order["name"].as_str().unwrap_or_default().to_owned(),
        order: order.clone(),
        price_usd_micro_per_hour: price,
        created_at: now,
        started_at: None,
        ended_at: None,
        stopped: false,
        starts: 0,
        listed: false,
        ports: Vec::new(),
        number,
        fault,
        container: None,
        link: None,
        id: id.clone(),
    });
    Ok(id)
}

fn view(shared: &Shared, id: &str) -> Option<Value> {
    let state = shared.state();
    let pod = state.pod(id)?;
    Some(pod.view(shared, &state.market.data_center))
}

fn list(shared: &Shared, query: &BTreeMap<String, String>) -> Response {
    let body = {
        let mut state = shared.state();
        if let Some(status) = state.lists.pop_front().flatten() {
            state.played.insert("a list failed");
            return problem(status, "refused for the test");
        }
        // The cursor is the last pod that was shown, so that a page is no shorter for a pod that ended meanwhile.
        let after: u32 = query.get("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
        let shown = TimeMs(TimeMs::now().0.saturating_sub(state.list_lag_ms));
        let is_shown = |pod: &&Pod| pod.ended_at.is_none() && pod.number > after && pod.created_at <= shown;
        let rest: Vec<&Pod> = state.pods.iter().filter(is_shown).collect();
        let page = &rest[..rest.len().min(state.page)];
        let shown: Vec<u32> = page.iter().map(|pod| pod.number).collect();
        let views: Vec<Value> = page.iter().map(|pod| pod.view(shared, &state.market.data_center)).collect();
        let mut body = json!({"pods": views});
        if page.len() < rest.len() {
            let last = page.last().map_or(0, |pod| pod.number);
            body["pagination"] = json!({"nextCursor": last.to_string()});
        }
        state.pods.iter_mut().filter(|pod| shown.contains(&pod.number)).for_each(|pod| pod.listed = true);
        body
    };
    told(shared, StatusCode::OK, "ListPodsResponse", &body)
}

fn show(shared: &Shared, id: &str) -> Response {
    match view(shared, id) {
        Some(view) => told(shared, StatusCode::OK, "Pod", &view),
        None => problem(404, "pod not found"),
    }
}

/// The lines that there are; a real stream would continue.
fn logs(shared: &Shared, id: &str, query: &BTreeMap<String, String>) -> Response {
    let log = {
        let state = shared.state();
        match state.pod(id) {
            Some(pod) => pod.log.clone(),
            None => return problem(404, "pod not found"),
        }
    };
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = query.get("tail").and_then(|tail| tail.parse().ok()).unwrap_or(100).min(lines.len());
    let ts = fine(TimeMs::now());
    let event = |(number, line): (usize, &&str)| {
        let data = json!({"ts": ts, "source": "container", "line": line});
        format!("id: {ts}/{number:012}\ndata: {data}\n\n")
    };
    let events: String = lines[lines.len() - tail..].iter().enumerate().map(event).collect();
    (StatusCode::OK, [(header::CONTENT_TYPE, "text/event-stream")], events).into_response()
}

async fn delete(shared: &Arc<Shared>, id: &str) -> Response {
    let refused = shared.state().deletions.pop_front().flatten();
    if let Some(status) = refused {
        shared.state().played.insert("a pod was not ended");
        return problem(status, "refused for the test");
    }
    let (ending, id) = (Arc::clone(shared), id.to_owned());
    let found = tokio::task::spawn_blocking(move || ending.end(|pod| pod.id == id)).await;
    if found.unwrap_or(false) {
        StatusCode::NO_CONTENT.into_response()
    } else {
        problem(404, "pod not found")
    }
}

async fn action(shared: &Arc<Shared>, id: &str, body: &[u8]) -> Response {
    let asked: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let faults = shared.text.faults("PodActionRequest", &asked);
    if !faults.is_empty() {
        return refusal(422, "the request is not valid", &faults);
    }
    let word = asked["action"].as_str().unwrap_or_default().to_owned();
    if word == "terminate" {
        let shown = view(shared, id);
        let answer = delete(shared, id).await;
        return match shown {
            Some(shown) if answer.status().is_success() => told(shared, StatusCode::OK, "Pod", &shown),
            _ => answer,
        };
    }
    {
        let mut state = shared.state();
        let Some(pod) = state.pod_mut(id) else {
            return problem(404, "pod not found");
        };
        if (word == "start") != pod.stopped {
            return problem(409, "not possible in the pod's present state");
        }
        pod.stopped = word == "stop";
        if let Some(mut container) = pod.container.take() {
            let _ = container.kill();
            let _ = container.wait();
        }
    }
    show(shared, id)
}

fn availability(shared: &Shared) -> &'static str {
    let state = shared.state();
    let alive = state.pods.iter().filter(|pod| pod.ended_at.is_none()).count();
    if alive < state.market.capacity { "HIGH" } else { "NONE" }
}

fn gpus(shared: &Shared, query: &BTreeMap<String, String>) -> Response {
    let level = availability(shared);
    let market = shared.state().market.clone();
    let price = market.gpu_usd_micro_per_hour as f64 / 1e6;
    let asked = query.get("cloud").map_or("COMMUNITY", String::as_str);
    let gpu = json!({
        "id": market.gpu, "name": market.gpu, "pool": null, "manufacturer": "NVIDIA", "memory": 24,
        "secure": asked == "SECURE", "community": true, "price": {"secure": price, "community": price},
        "maxCount": {"secure": 8, "community": 4}, "availability": level,
        "dataCenters": [{"id": market.data_center, "name": market.data_center, "availability": level}],
    });
    told(shared, StatusCode::OK, "ListGpuTypesResponse", &json!({"gpus": [gpu]}))
}

fn cpus(shared: &Shared) -> Response {
    let level = availability(shared);
    let market = shared.state().market.clone();
    let price = market.usd_micro_per_vcpu_hour as f64 / 1e6;
    let cpu = json!({
        "id": market.cpu, "name": "Compute-Optimized", "group": "Gen 5", "vcpu": {"min": 2, "max": 32},
        "ramGbPerVcpu": 2.0, "price": {"securePerVcpu": price, "serverlessPerVcpu": price}, "availability": level,
        "dataCenters": [{"id": market.data_center, "name": market.data_center, "availability": level}],
    });
    told(shared, StatusCode::OK, "ListCpuTypesResponse", &json!({"cpus": [cpu]}))
}

/// One record a pod: what it came to within the time that was asked for is its whole life here.
fn billing(shared: &Shared, query: &BTreeMap<String, String>) -> Response {
    let now = TimeMs::now();
    let time = |name: &str, other: u64| query.get(name).and_then(|text| from_rfc3339(text)).unwrap_or(other);
    let (from, to) = (time("startTime", 0), time("endTime", now.0));
    let body = {
        let state = shared.state();
        let amounts = |micro: i64| {
            let sum = micro as f64 / 1e6;
            json!({"totalAmount": sum, "gpuAmount": 0.0, "cpuAmount": sum, "diskAmount": 0.0})
        };
        let mut total = 0;
        let mut records = Vec::new();
        for pod in &state.pods {
            let micro = pod.billed_usd_micro(now);
            total += micro;
            let mut record = amounts(micro);
            record["podId"] = json!(pod.id);
            record["startTime"] = json!(fine(pod.created_at));
            record["endTime"] = json!(fine(pod.ended_at.unwrap_or(now)));
            records.push(record);
        }
        let bucket = query.get("bucketSize").map_or("day", String::as_str);
        let count = records.len();
        json!({
            "records": records,
            "metadata": {
                "query": {"startTime": to_rfc3339(from), "endTime": to_rfc3339(to), "bucketSize": bucket},
                "recordCount": count, "uniquePodCount": count, "totals": amounts(total),
            },
        })
    };
    told(shared, StatusCode::OK, "ListPodBillingResponse", &body)
}

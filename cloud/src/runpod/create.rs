//! Creating a pod exactly once, over an API without idempotency keys.

use hyper::Method;

use super::wire::{CreateBody, PodBody};
use super::{Runpod, answers};
use crate::http::HttpError;
use crate::provider::{CloudError, Order, PodId, Provider, Rented};

/// The provider refuses larger requests with 413.
const BODY_BYTES_MAX: usize = 100 * 1024;
/// The provider takes no more environment variables.
const ENV_MAX: usize = 50;
/// Lists that are read before a creation without an answer is tried again.
const LOOKS: u32 = 3;

/// Does a refusal speak of the fields that say what runs?
fn names_a_start_field(why: &str) -> bool {
    let word = |c: char| !c.is_ascii_alphanumeric();
    why.split(word).any(|word| word.eq_ignore_ascii_case("entrypoint") || word.eq_ignore_ascii_case("cmd"))
}

impl Runpod {
    /// 1. Look for the name: an earlier life of the caller may have ordered it.
    /// 2. Order. A clear answer ends it.
    /// 3. After a lost or failing answer: wait and look for the name, more than once; only when no *whole* list holds
    ///    it, order again. If the list cannot be read, it stays uncertain and nothing more is ordered.
    /// 4. After an uncertain path look once more, and end all but one pod of the name.
    pub(super) async fn create_once(&self, order: &Order) -> Result<Rented, CloudError> {
        let whole = CreateBody::of(order);
        let mut body = self.body(order, &whole)?;
        // Fields that the published text does not have are sent until the server says that it does not know them.
        let mut older = whole.with_args();
        if let Some(found) = self.find(&order.name).await? {
            return Ok(found);
        }
        let mut uncertain = false;
        for attempt in 1..=self.options.tries {
            let fault = match self.server.send(Method::POST, "/v2/pods", Some(body.clone())).await {
                Ok(answer) if matches!(answer.status, 200 | 201) => {
                    match answers::decode::<PodBody>(&answer.body, "created pod") {
                        Ok(pod) if !uncertain => return Ok(pod.rented()),
                        Ok(pod) => return Ok(self.alone(pod.rented()).await),
                        // Rented, but we do not know what: the list will say.
                        Err(fault) => CloudError::Uncertain(fault.to_string()),
                    }
                }
                Ok(answer) => answers::fault(&answer, "/v2/pods"),
                Err(HttpError::NotSent { host, reason }) => {
                    CloudError::Unreachable(format!("{host}: {reason}"))
                }
                Err(HttpError::Lost { host, reason }) => CloudError::Uncertain(format!("{host}: {reason}")),
                Err(HttpError::Address(why)) => CloudError::Invalid(why),
            };
            match fault {
                CloudError::Invalid(why)
                    if names_a_start_field(&why)
                        && !uncertain
                        && attempt < self.options.tries
                        && let Some(older) = older.take() =>
                {
                    tracing::warn!(pod = order.name, why, "ordered again with `args`");
                    body = self.body(order, &older)?;
                }
                CloudError::RateLimited { retry_after }
                    if retry_after <= self.options.wait_max && attempt < self.options.tries =>
                {
                    tokio::time::sleep(retry_after).await;
                }
                CloudError::Unreachable(_) if attempt < self.options.tries => {
                    tokio::time::sleep(self.options.settle).await;
                }
                CloudError::Uncertain(why) => {
                    uncertain = true;
                    match self.look_for(&order.name).await {
                        Ok(Some(found)) => return Ok(self.alone(found).await),
                        Ok(None) if attempt < self.options.tries => {}
                        Ok(None) => return Err(CloudError::Uncertain(why)),
                        Err(blind) => {
                            return Err(CloudError::Uncertain(format!(
                                "{why}; and the list of pods: {blind}"
                            )));
                        }
                    }
                }
                clear if uncertain => {
                    // This answer is clear, but an earlier one was not: that pod may have come up meanwhile.
                    return match self.find(&order.name).await {
                        Ok(Some(found)) => Ok(self.alone(found).await),
                        Ok(None) => Err(clear),
                        Err(blind) => {
                            Err(CloudError::Uncertain(format!("{clear}; and the list of pods: {blind}")))
                        }
                    };
                }
                clear => return Err(clear),
            }
        }
        Err(CloudError::Uncertain(format!("gave up after {} tries", self.options.tries)))
    }

    fn body(&self, order: &Order, body: &CreateBody) -> Result<Vec<u8>, CloudError> {
        if order.env.len() > ENV_MAX {
            return Err(CloudError::Invalid(format!("more than {ENV_MAX} environment variables")));
        }
        let body = serde_json::to_vec(body)
            .map_err(|fault| CloudError::Invalid(format!("the order cannot be written: {fault}")))?;
        if body.len() > BODY_BYTES_MAX {
            return Err(CloudError::Invalid(format!("the order is larger than {BODY_BYTES_MAX} bytes")));
        }
        Ok(body)
    }

    /// Looks several times, since a pod may show late; a name that no look found was not rented, as far as anybody
    /// can know.
    async fn look_for(&self, name: &str) -> Result<Option<Rented>, CloudError> {
        for _ in 0..LOOKS {
            tokio::time::sleep(self.options.settle).await;
            if let Some(found) = self.find(name).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The oldest living pod of the name.
    async fn find(&self, name: &str) -> Result<Option<Rented>, CloudError> {
        Ok(self.named(name).await?.into_iter().next())
    }

    async fn named(&self, name: &str) -> Result<Vec<Rented>, CloudError> {
        let mut pods: Vec<Rented> =
            self.list().await?.into_iter().filter(|pod| pod.name == name && pod.status.is_alive()).collect();
        pods.sort_by(|a, b| (a.created_at_ms, &a.id).cmp(&(b.created_at_ms, &b.id)));
        Ok(pods)
    }

    /// Ends every other living pod of the name and answers the one that stays. What cannot be ended now is left to
    /// the caller's reaper, which ends pods that no intent claims.
    async fn alone(&self, pod: Rented) -> Rented {
        let Ok(mut pods) = self.named(&pod.name).await else { return pod };
        if pods.is_empty() {
            return pod;
        }
        let stays = pods.remove(0);
        for surplus in pods {
            let PodId(id) = &surplus.id;
            match self.terminate(&surplus.id).await {
                Ok(()) => tracing::warn!(pod = %surplus.name, id, "terminated a pod that was created twice"),
                Err(fault) => {
                    tracing::error!(pod = %surplus.name, id, %fault, "a pod created twice still runs")
                }
            }
        }
        stays
    }
}

//! What the server's permissions refuse. It says so beside the conversation, naming the subject, and answers nothing;
//! here the word finds its way to whoever waits for that answer.

use tokio::sync::broadcast;

use crate::bus::{BusError, Result};

const KEPT: usize = 64;

/// Subjects that this connection may not use, as the server names them. `None` where no permissions are known of.
#[derive(Debug, Clone)]
pub(super) struct Refusals(Option<broadcast::Sender<String>>);

/// Listens from before a message is sent, so that the answer to it cannot be missed.
pub(super) struct Listener(Option<broadcast::Receiver<String>>);

impl Refusals {
    pub(super) fn new(has_permissions: bool) -> Refusals {
        Refusals(has_permissions.then(|| broadcast::channel(KEPT).0))
    }

    /// Takes in what the server said.
    pub(super) fn hear(&self, error: &str) {
        if let (Some(tell), Some(subject)) = (&self.0, subject_of(error)) {
            // Nobody listens when nobody waits for an answer.
            let _ = tell.send(subject.to_owned());
        }
    }

    pub(super) fn listen(&self) -> Listener {
        Listener(self.0.as_ref().map(broadcast::Sender::subscribe))
    }
}

impl Listener {
    /// Waits for `answer`, or until the server says that nothing may be sent to `subject`.
    pub(super) async fn or<T>(self, subject: &str, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(mut refused) = self.0 else { return answer.await };
        let refusal = async {
            loop {
                match refused.recv().await {
                    Ok(other) if other != subject => {}
                    Ok(_) => return,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    // The connection is gone: the answer's own time-out tells.
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            answer = answer => answer,
            () = refusal => Err(BusError::Refused(format!("these credentials may not use {subject}"))),
        }
    }
}

/// `Permissions Violation for Publish to "tf.x"`
fn subject_of(error: &str) -> Option<&str> {
    let is_one = error.to_ascii_lowercase().contains("permissions violation for publish");
    let (_, rest) = error.split_once('"').filter(|_| is_one)?;
    rest.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_read_out_of_the_servers_words() {
        assert_eq!(
            subject_of("nats: Permissions Violation for Publish to \"tf.api.pods\""),
            Some("tf.api.pods")
        );
        assert_eq!(subject_of("nats: Permissions Violation for Subscription to \"tf.>\""), None);
        assert_eq!(subject_of("nats: maximum connections exceeded"), None);
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_its_own_subject_only() {
        let refusals = Refusals::new(true);
        let heard = refusals.clone();
        let waiting = refusals.listen().or("tf.a", async {
            heard.hear("Permissions Violation for Publish to \"tf.b\"");
            heard.hear("Permissions Violation for Publish to \"tf.a\"");
            std::future::pending::<Result<()>>().await
        });
        assert!(matches!(waiting.await, Err(BusError::Refused(text)) if text.contains("tf.a")));
    }
}

//! Whether the server is there and still the same: asked every second, and when a request has broken off.
//!
//! A server that lists its model and generates a token is there. One that has been away must show both again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::ask::{CHAT, COMPLETIONS};
use super::client::{Client, Trouble};
use super::probe::{self, Facts};
use super::server::Server;

const EVERY: Duration = Duration::from_secs(1);
/// One token may take so long.
const TOKEN_WITHIN: Duration = Duration::from_secs(20);
const AGAIN_AFTER: Duration = Duration::from_millis(300);
/// Looks in a row that must fail.
const MISSES: u32 = 2;
/// Between two starts of a server that dies: doubled with each.
const RESTART_FIRST: Duration = Duration::from_secs(1);
const RESTART_LONGEST: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    Present,
    Away(String),
    /// There is another model, or another server, than at the start.
    Changed(String),
}

enum Question {
    /// A request broke off: is the server there?
    IsThere(oneshot::Sender<bool>),
    /// Nothing has come for too long.
    Hangs,
}

/// The task that watches.
#[derive(Debug)]
pub(crate) struct Watch {
    questions: mpsc::UnboundedSender<Question>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Asks the task.
#[derive(Debug, Clone)]
pub(crate) struct Asker(mpsc::UnboundedSender<Question>);

impl Asker {
    /// Whether the server is there after all.
    pub(super) async fn is_there(&self) -> bool {
        let (answer, told) = oneshot::channel();
        self.0.send(Question::IsThere(answer)).is_ok() && told.await.unwrap_or(false)
    }
}

impl Watch {
    pub(crate) fn start(
        client: Arc<Client>,
        facts: Arc<Facts>,
        server: Option<Server>,
        silence: Duration,
        notices: mpsc::UnboundedSender<Notice>,
    ) -> Watch {
        let (questions, inbox) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (up, misses, delay, token_within) = (true, 0, RESTART_FIRST, TOKEN_WITHIN.min(silence));
        let watcher = Watcher { client, facts, server, notices, token_within, up, misses, delay };
        let task = tokio::spawn(watcher.run(inbox, stop.clone()));
        Watch { questions, stop, task }
    }

    pub(crate) fn asker(&self) -> Asker {
        Asker(self.questions.clone())
    }

    /// The server sends nothing although it should.
    pub(crate) fn hangs(&self) {
        // Nobody listens only at the end.
        let _ = self.questions.send(Question::Hangs);
    }

    /// Ends the server, where it was started here.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

struct Watcher {
    client: Arc<Client>,
    facts: Arc<Facts>,
    server: Option<Server>,
    notices: mpsc::UnboundedSender<Notice>,
    token_within: Duration,
    up: bool,
    misses: u32,
    delay: Duration,
}

impl Watcher {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Question>, stop: CancellationToken) {
        loop {
            let step = async {
                tokio::select! {
                    biased;
                    Some(question) = inbox.recv() => self.answer(question).await,
                    () = tokio::time::sleep(EVERY) => self.look().await,
                }
            };
            tokio::select! {
                () = step => {}
                () = stop.cancelled() => break,
            }
        }
        if let Some(mut server) = self.server.take() {
            server.end().await;
        }
    }

    async fn answer(&mut self, question: Question) {
        match question {
            Question::IsThere(answer) => {
                if self.up
                    && let Err(why) = self.generates().await
                {
                    self.away(why);
                }
                // Whoever asked may have been cancelled meanwhile.
                let _ = answer.send(self.up);
            }
            Question::Hangs => {
                self.away("it sends nothing".to_owned());
                self.start_again().await;
            }
        }
    }

    async fn look(&mut self) {
        if let Some(status) = self.server.as_mut().and_then(Server::ended) {
            self.away(format!("its command ended with {status}"));
            self.start_again().await;
            return;
        }
        match probe::identity_of(&self.client, self.client.model()).await {
            Ok(Some(identity)) if identity == self.facts.identity => self.listed().await,
            Ok(Some(identity)) => {
                let why = format!("it was {} and is {identity}", self.facts.identity);
                let _ = self.notices.send(Notice::Changed(why));
            }
            Ok(None) => self.missed("it does not list the model any more".to_owned()),
            Err(trouble) => self.missed(trouble.to_string()),
        }
    }

    async fn listed(&mut self) {
        if !self.up {
            match self.generates().await {
                Ok(()) => {
                    tracing::info!("the server is there again");
                    (self.up, self.delay) = (true, RESTART_FIRST);
                }
                Err(_) => return,
            }
        }
        self.misses = 0;
        let _ = self.notices.send(Notice::Present);
    }

    fn missed(&mut self, why: String) {
        self.misses += 1;
        if self.misses >= MISSES {
            self.away(why);
        }
    }

    fn away(&mut self, why: String) {
        if std::mem::replace(&mut self.up, false) {
            let _ = self.notices.send(Notice::Away(why));
        }
    }

    /// A token comes, on the second try at the latest. A server that has no room now is there.
    async fn generates(&self) -> Result<(), String> {
        let (path, body) = match self.facts.abilities.completions {
            true => (COMPLETIONS, serde_json::json!({ "prompt": "a", "max_tokens": 1 })),
            false => {
                let messages = serde_json::json!([{ "role": "user", "content": "a" }]);
                (CHAT, serde_json::json!({ "messages": messages, "max_tokens": 1 }))
            }
        };
        let mut last = String::new();
        for _ in 0..MISSES {
            match tokio::time::timeout(self.token_within, self.client.ask(path, &body)).await {
                Ok(Ok(_) | Err(Trouble::Busy(_))) => return Ok(()),
                Ok(Err(trouble)) => last = trouble.to_string(),
                Err(_) => return Err(format!("no token came within {} s", self.token_within.as_secs())),
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        Err(last)
    }

    async fn start_again(&mut self) {
        let Some(server) = &mut self.server else { return };
        tokio::time::sleep(self.delay).await;
        self.delay = (2 * self.delay).min(RESTART_LONGEST);
        if let Err(fault) = server.start_again().await {
            tracing::error!(fault = format!("{fault:#}"), "the server cannot be started again");
        }
    }
}

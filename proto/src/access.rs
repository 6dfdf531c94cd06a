//! Who may connect to NATS: tokens in NATS's own JWT format, made and read here, enforced by the server.
//!
//! One operator, one account. The account's token lists a *scoped signing key* for each [`Role`](crate::table::Role): the server gives
//! whoever connects with a token of that key the role's permissions, with the bearer's name filled in. So new pods and
//! tenants need no change of any server's configuration, and no holder of one signing key can make more than its role.
//!
//! [`Site`] is what an operator keeps offline; [`Issuer`] is the part that a coordinator needs to let pods in;
//! [`Credentials`] is what a client connects with. Nothing here talks to a network.

mod credentials;
mod issuer;
mod join;
mod jwt;
mod site;

pub use credentials::{Credentials, Holder};
pub use issuer::Issuer;
pub use join::{Asking, JoinToken, Joiner, PodFile};
pub use site::{Folders, Node, Site};

/// What is wrong with a key or a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    #[error("{what} cannot be used: {reason}")]
    Unusable { what: String, reason: String },
    #[error("{0} is the coordinator's own name: choose another")]
    Reserved(String),
}

fn unusable(what: &str, reason: impl std::fmt::Display) -> AccessError {
    AccessError::Unusable { what: what.to_owned(), reason: reason.to_string() }
}

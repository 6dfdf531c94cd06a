//! A fleet for one batch: rented, fed, emptied and given back by one command.
//!
//! Everything that has to be known to continue is in a state file before the first order ([`state`]). Each step may be
//! repeated, so a command that was killed anywhere is followed by one that starts from the top ([`steps`]) and finds
//! what is there already. Where the fleet runs is the business of a [`head`]: processes of this machine, pods at
//! RunPod, or a coordinator that somebody else runs.

mod bill;
pub(crate) mod bundle;
mod head;
mod quote;
mod rent;
mod state;
mod steps;

pub(crate) use head::Head;
pub(crate) use quote::{Plan, plan};
pub(crate) use rent::{Rent, Wishes, key};
pub(crate) use state::{Elsewhere, Folder, Folders, Phase, Place, State};
pub(crate) use steps::{Outcome, give_back, run};

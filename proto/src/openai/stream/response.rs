//! The stream of a response: items that begin, grow and end, in events that have names and numbers.

use super::super::single::single_body;
use super::{Piece, Place, Spoken, Told, responses};
use crate::message::{Finish, Generated, JobResult};
use responses::Status;
use serde_json::Value;

impl Told {
    /// Some more text, and parts of calls after it. `silent` says that there is no text to tell.
    pub(super) fn piece_of_response(&mut self, piece: &Piece<'_>, silent: bool) -> Vec<Spoken> {
        let mut events = Vec::new();
        if !silent {
            self.enter(Place::Message, "", &mut events);
            let told = &mut self.choices[0];
            told.text.push_str(piece.text);
            told.logprobs.extend_from_slice(piece.logprobs);
            events.push(responses::text_delta(&self.job, piece.text, piece.logprobs));
        }
        for call in piece.calls {
            self.take(0, call);
            let place = self.place_of_call(call.call as usize);
            let name = self.choices[0].calls.get(call.call as usize).map(|call| call.name.clone());
            self.enter(place, &name.unwrap_or_default(), &mut events);
            if !call.arguments.is_empty() {
                events.push(responses::call_delta(&self.job, place, &call.arguments));
            }
        }
        self.numbered_all(events)
    }

    /// What is left once everything was told: the end of the last item, and the response.
    pub(super) fn end_response(&mut self, result: &JobResult, generated: &Generated) -> Vec<Spoken> {
        let mut events = Vec::new();
        if self.open.is_none() {
            self.enter(Place::Message, "", &mut events);
        }
        let status = if generated.finish == Finish::Length { Status::Incomplete } else { Status::Completed };
        events.extend(self.leave(status));
        events.push(responses::closing(generated.finish, &single_body(result, &self.single)));
        self.numbered_all(events)
    }

    fn place_of_call(&self, call: usize) -> Place {
        Place::Call { call, spoken: !self.choices[0].text.is_empty() }
    }

    /// Goes to an item: what was told before it has ended.
    fn enter(&mut self, place: Place, name: &str, events: &mut Vec<Value>) {
        if self.open == Some(place) {
            return;
        }
        events.extend(self.leave(Status::Completed));
        events.extend(responses::begin(&self.job, place, name));
        self.open = Some(place);
    }

    /// Ends the item that is being told.
    fn leave(&mut self, status: Status) -> Vec<Value> {
        let told = &self.choices[0];
        match self.open.take() {
            None => Vec::new(),
            Some(Place::Message) => responses::end_message(&self.job, &told.text, &told.logprobs, status),
            Some(place @ Place::Call { call, .. }) => told
                .calls
                .get(call)
                .map_or_else(Vec::new, |call| responses::end_call(&self.job, place, call, status)),
        }
    }

    fn numbered_all(&mut self, events: Vec<Value>) -> Vec<Spoken> {
        events.into_iter().map(|event| self.numbered(event)).collect()
    }
}

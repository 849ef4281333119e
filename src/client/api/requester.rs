//! A handle for many requests to one service.
//!
//! A call whose request and reply are one record each does not go through the table's queues, if the reader role is
//! free: the thread takes the role before it places the request, and keeps it until it has taken the reply out of the
//! ring. So no part of the reply is sorted before the thread looks, and no other thread ends the call meanwhile. The
//! thread sorts the records that lie before the reply, as each leader does. Every other call takes the path of
//! [`Client::request`].

use super::client::Client;
use super::request::{ReplyStream, begin, request_header};
use crate::client::connection::calls::{self, SingleCall};
use crate::client::connection::interning::Interned;
use crate::client::data::call_options::{CallDeadline, RequestOptions, timeout_as_deadline};
use crate::client::data::names::Callee;
use crate::client::engine::wait::{self, Leader};
use crate::client::engine::{names, turn};
use crate::client::error::Result;
use crate::wire::record::Outcome;
use std::sync::Arc;

impl Client {
    /// A handle for many requests to one service: the name is looked up once.
    ///
    /// The service need not have a responder yet. Each call is sent to a responder that the service has by then.
    ///
    /// # Errors
    ///
    /// If the name is invalid, a limit of services is reached, or the connection has ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let complete = client.requester("complete")?;
    /// for prefix in ["f", "fn", "fn m"] {
    ///     println!("{:?}", complete.call(prefix)?);
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn requester(&self, service: &str) -> Result<Requester> {
        let interned = names::service(&self.connection, service)?;
        Ok(Requester { service: interned.into(), name: service.into(), client: self.clone() })
    }
}

/// Calls one service. A handle, like [`Client`]; threads that share it call side by side. It stays valid when the
/// client reconnects, and then requests the number of the service again by itself.
///
/// A call waits for its reply and returns exactly one outcome, as [`Client::request`] does. It costs less: a request
/// and a reply of at most [`Limits::slot_size`](crate::client::Limits::slot_size) bytes each are copied once by this
/// side, and [`call_into`](Requester::call_into) allocates no memory once `reply` is large enough.
#[derive(Clone, Debug)]
pub struct Requester {
    pub(super) service: Arc<Interned>,
    pub(super) name: Arc<str>,
    pub(super) client: Client,
}

impl Requester {
    /// Calls the service with `payload`, waits, and returns the reply.
    ///
    /// # Errors
    ///
    /// As [`Client::request`]: the outcome of the request, if it is not a reply; the request is not sent if `payload`
    /// is larger than [`Limits::max_message_size`](crate::client::Limits::max_message_size) bytes.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let echo = client.requester("echo")?;
    /// assert_eq!(echo.call("hi")?, b"hi");
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn call(&self, payload: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        self.call_with(payload, RequestOptions::default())
    }

    /// As [`call`](Requester::call), with options.
    ///
    /// # Errors
    ///
    /// As [`call`](Requester::call).
    pub fn call_with(&self, payload: impl AsRef<[u8]>, options: RequestOptions) -> Result<Vec<u8>> {
        let mut reply = Vec::new();
        self.call_into_with(payload, &mut reply, options)?;
        Ok(reply)
    }

    /// Calls the service with `payload`, waits, and replaces the contents of `reply` by the reply, in the memory that
    /// `reply` has if that is enough. After an error `reply` is empty.
    ///
    /// # Errors
    ///
    /// As [`call`](Requester::call).
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let (echo, mut reply) = (client.requester("echo")?, Vec::new());
    /// for number in 0..1000_u32 {
    ///     echo.call_into(number.to_le_bytes(), &mut reply)?;
    ///     assert_eq!(reply, number.to_le_bytes());
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn call_into(&self, payload: impl AsRef<[u8]>, reply: &mut Vec<u8>) -> Result<()> {
        self.call_into_with(payload, reply, RequestOptions::default())
    }

    /// As [`call_into`](Requester::call_into), with options.
    ///
    /// # Errors
    ///
    /// As [`call`](Requester::call).
    ///
    /// ```no_run
    /// use lapce_ipc::client::RequestOptions;
    /// use std::time::Duration;
    ///
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let (complete, mut reply) = (client.requester("complete")?, Vec::new());
    /// let options = RequestOptions { timeout: Some(Duration::from_millis(50)), ..RequestOptions::default() };
    /// complete.call_into_with("fn ma", &mut reply, options)?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn call_into_with(
        &self,
        payload: impl AsRef<[u8]>,
        reply: &mut Vec<u8>,
        options: RequestOptions,
    ) -> Result<()> {
        let outcome = self.client.retry(options, |options| {
            reply.clear();
            self.call_once(payload.as_ref(), reply, options)
        });
        outcome.inspect_err(|_| reply.clear())
    }

    pub(super) fn callee(&self) -> Callee<'_> {
        Callee { name: &self.name, held: Some(self.service.name) }
    }

    pub(super) fn call_once(&self, payload: &[u8], reply: &mut Vec<u8>, options: RequestOptions) -> Result<()> {
        let connection = &self.client.connection;
        connection.check_fork()?;
        connection.check_size(payload.len())?;
        if payload.len() <= connection.limits.slot_size() as usize
            && let Some(lead) = wait::try_lead(connection)
            && let Some(call) = SingleCall::place(connection, self.callee(), &request_header(options), payload)
        {
            return self.receive_leading(lead, call, reply, options);
        }
        // The role is given back before anything is waited for.
        let (mut stream, mut body) = begin(connection, self.callee(), payload.len(), options, false)?;
        body.send(&mut stream, payload)?;
        stream.receive_all(reply)
    }

    /// Waits with the reader role for the reply, or for a part of it.
    fn receive_leading(
        &self,
        mut lead: Leader<'_>,
        call: SingleCall,
        reply: &mut Vec<u8>,
        options: RequestOptions,
    ) -> Result<()> {
        let connection = &self.client.connection;
        let mut time = CallDeadline::new(&connection.limits, options, false);
        let SingleCall { slot, generation, session } = call;
        let sorts = lead.reader.sorts;
        if turn::poll_briefly(&mut lead.reader, connection)
            // What is sorted may be a part of the reply, and the rest could pass for a whole one.
            && lead.reader.sorts == sorts
            && lead.reader.take_reply(slot, generation, reply)
        {
            call.finish(connection);
            return Ok(());
        }
        let found = wait::leading(connection, lead, time.until(), |reader| match call.diverted(connection) {
            None => reader.take_reply(slot, generation, reply).then_some(None),
            // It comes before what lies in the ring.
            diverted => Some(diverted),
        });
        match found {
            Ok(None) => {
                call.finish(connection);
                Ok(())
            }
            Ok(Some(claimed)) => ReplyStream::placed(connection, claimed, session, time).receive_all(reply),
            Err(error) => {
                if connection.is_ours() {
                    calls::cancel(connection, slot, generation, Outcome::DeadlineExceeded);
                }
                Err(timeout_as_deadline(error))
            }
        }
    }
}

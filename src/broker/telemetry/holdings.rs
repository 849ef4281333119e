//! The entries of the status that say what users hold.

use crate::logic::quotas::Quotas;
use crate::logic::shares::{BROKER, Holding};
use crate::wire::control::HoldingStatus;

/// The entries of one resource. What the broker holds itself is not listed.
pub(in crate::broker) fn listed<'a>(
    quotas: &'a Quotas,
    resource: &'static str,
    key: Option<&'static str>,
    holdings: impl Iterator<Item = Holding> + 'a,
) -> impl Iterator<Item = HoldingStatus> + 'a {
    let of_users = holdings.filter(|holding| holding.user != BROKER);
    of_users.map(move |Holding { user, held, most }| HoldingStatus {
        uid: user.uid(),
        quota: quotas.name(user).map(str::to_owned),
        resource: resource.to_owned(),
        held: held as u64,
        limit: most as u64,
        key: key.map(str::to_owned),
    })
}

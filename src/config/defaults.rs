//! `[defaults.KIND]`: what lies under every table of a kind. They are read as one more table of it, so all that is known
//! of a key holds here too, and laid under the others once all is read: a place, and so an error, stays where it is
//! written.

use super::decode::{Decode, Map, section};
use super::forward::ForwardRaw;
use super::http::HttpRaw;
use super::tcp::TcpRaw;
use super::udp::UdpRaw;
use super::upstream::UpstreamRaw;

section! {
    /// What lies under every table of a kind: tables merge, all else replaces.
    pub struct DefaultsRaw {
        /// Under every `[http.NAME]`. The action of a server takes the place of one that is here.
        http: Box<HttpRaw>,
        /// Under every `[upstreams.NAME]`.
        upstreams: Box<UpstreamRaw>,
        /// Under every `[forward.NAME]`.
        forward: Box<ForwardRaw>,
        /// Under every `[tcp.NAME]`.
        tcp: Box<TcpRaw>,
        /// Under every `[udp.NAME]`.
        udp: Box<UdpRaw>,
    }
    later = [];
}

/// Lays `below` under every table of its kind.
pub fn lay_under<T: Decode>(tables: Option<&mut Map<T>>, below: Option<&T>) {
    if let (Some(tables), Some(below)) = (tables, below) {
        tables
            .values_mut()
            .for_each(|table| table.value.lay_over(below));
    }
}

//! Who comes to the public side, and may it: the three messages before HTTP/2, on a connection whose TLS handshake is done.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::auth::{self, Claim, Prover};
use super::carrier::{hear, tell};
use super::session::Ends;
use super::ticket::{Awaited, Tickets};
use super::wire::{self, Challenge, Hello, Verdict};
use crate::config::scalar::Secret;
use crate::config::tunnel::TunnelSpec;

/// What the TLS handshake has told.
#[derive(Debug)]
pub struct Secured {
    pub exporter: auth::Exporter,
    /// Names of the certificate that the agent showed.
    pub names: Vec<String>,
}

/// What an agent was let in by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credential {
    Secret(Secret),
    Certificate,
}

/// What an agent came for.
#[derive(Debug)]
pub(super) enum Comes {
    /// A session.
    Session(Hello, Credential),
    /// A flow, for which this was asked of it.
    Flow(Awaited),
}

/// Greets who has come. `id`: what a session is to be called.
///
/// # Errors
/// What the socket says; [`io::ErrorKind::PermissionDenied`]: it may not come.
pub(super) async fn greet(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    id: &str,
    secured: &Secured,
    (spec, tickets): (&TunnelSpec, &Arc<Tickets>),
    ends: &Ends,
) -> io::Result<Comes> {
    let nonce = auth::random::<32>()?;
    let challenge = Challenge {
        evergate: env!("CARGO_PKG_VERSION").to_owned(),
        version: wire::VERSION,
        nonce: auth::hex(&nonce),
    };
    tell(io, &challenge).await?;
    let hello: Hello = hear(io).await?;
    let claim = Claim {
        exporter: &secured.exporter,
        nonce: &nonce,
        agent: &hello.agent,
    };
    let judged = judge(&hello, &claim, &secured.names, spec, ends).and_then(|judged| {
        let Some(ticket) = &hello.ticket else {
            return Ok((judged, None));
        };
        let awaited = tickets.redeem(ticket, &hello.agent);
        let awaited = awaited.ok_or_else(|| {
            let detail = format!(
                "agent {} comes for a flow that nobody waits for",
                hello.agent
            );
            (wire::Refusal::Ticket, detail)
        })?;
        Ok((judged, Some(awaited)))
    });
    match judged {
        Ok(((credential, proof), awaited)) => {
            let session = id.to_owned();
            tell(io, &Verdict::Welcome { session, proof }).await?;
            Ok(match awaited {
                Some(awaited) => Comes::Flow(awaited),
                None => Comes::Session(hello, credential),
            })
        }
        Err((reason, detail)) => {
            let told = detail.clone();
            tell(io, &Verdict::Refused { reason, detail }).await?;
            // It is read before the connection goes.
            let _ = shutdown_now(io).await;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, told))
        }
    }
}

/// Ends what was written, and waits for the other side to have read it.
async fn shutdown_now(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    io.shutdown().await?;
    let mut rest = [0; 64];
    while io.read(&mut rest).await? > 0 {}
    Ok(())
}

/// What lets it in, and our own proof.
fn judge(
    hello: &Hello,
    claim: &Claim<'_>,
    names: &[String],
    spec: &TunnelSpec,
    ends: &Ends,
) -> Result<(Credential, Option<String>), (wire::Refusal, String)> {
    if hello.version != wire::VERSION {
        let detail = format!("version {} of the tunnel is not spoken here", hello.version);
        return Err((wire::Refusal::Version, detail));
    }
    if ends.finish.is_cancelled() {
        return Err((wire::Refusal::Stopping, "this tunnel is going".to_owned()));
    }
    credential(hello, claim, names, spec).ok_or_else(|| {
        let detail = format!(
            "agent {} is not known here, or its secret is wrong",
            hello.agent
        );
        (wire::Refusal::Unauthorized, detail)
    })
}

fn credential(
    hello: &Hello,
    claim: &Claim<'_>,
    names: &[String],
    spec: &TunnelSpec,
) -> Option<(Credential, Option<String>)> {
    let known = spec.tokens.get(hello.agent.as_str());
    if let Some(proof) = &hello.proof {
        let secret = claim.which(known.map_or(&[], |list| list.as_slice()), proof)?;
        let ours = claim.prove(Prover::Server, secret);
        return Some((Credential::Secret(secret.clone()), Some(ours)));
    }
    let named = names.contains(&hello.agent) && crate::config::check::is_name(&hello.agent);
    let asked = spec.tls.client_auth.is_some();
    (asked && named).then_some((Credential::Certificate, None))
}

/// Who the peer is by its handshake.
///
/// # Errors
/// When it is not TLS 1.3, or its certificate cannot be read.
pub fn secured<T>(tls: &T, names: Vec<String>) -> io::Result<Secured>
where
    T: Exports,
{
    Ok(Secured {
        exporter: tls.exporter()?,
        names,
    })
}

/// A TLS connection of either side.
pub trait Exports {
    /// What only the two ends of it have.
    ///
    /// # Errors
    /// When it is not TLS 1.3.
    fn exporter(&self) -> io::Result<auth::Exporter>;
}

macro_rules! exports {
    ($type:ty) => {
        impl Exports for $type {
            fn exporter(&self) -> io::Result<auth::Exporter> {
                if self.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
                    return Err(io::Error::other("a tunnel needs TLS 1.3"));
                }
                self.export_keying_material([0; 32], auth::LABEL, None)
                    .map_err(io::Error::other)
            }
        }
    };
}

exports!(rustls::ServerConnection);
exports!(rustls::ClientConnection);

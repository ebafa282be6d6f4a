//! Handshakes counted by how they went. One set per worker, summed when read: nothing is shared between cores.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::Error;

/// Why a handshake came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// It was not over in time, or its address had no more patience.
    Timeout,
    /// The client went away.
    Gone,
    /// What came was not TLS.
    Protocol,
    /// Nothing in common: version, cipher suite, group or protocol.
    Incompatible,
    /// The client's certificate: none where one is required, or one that is not good.
    ClientCertificate,
    /// The client refused: as a rule because it does not trust our certificate.
    Alert,
    Other,
}

impl Failure {
    /// All, in the order of [`Counters::failed`].
    pub const ALL: [Failure; 7] = [
        Failure::Timeout,
        Failure::Gone,
        Failure::Protocol,
        Failure::Incompatible,
        Failure::ClientCertificate,
        Failure::Alert,
        Failure::Other,
    ];

    /// As a label of a metric.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Timeout => "timeout",
            Failure::Gone => "gone",
            Failure::Protocol => "protocol",
            Failure::Incompatible => "incompatible",
            Failure::ClientCertificate => "client_certificate",
            Failure::Alert => "alert",
            Failure::Other => "other",
        }
    }

    /// What the error of a handshake means.
    pub fn of(error: &io::Error) -> Failure {
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
        match inner {
            None => Failure::Gone,
            Some(Error::InvalidMessage(_) | Error::InappropriateMessage { .. }) => {
                Failure::Protocol
            }
            Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => {
                Failure::Incompatible
            }
            Some(
                Error::NoCertificatesPresented
                | Error::InvalidCertificate(_)
                | Error::UnsupportedNameType
                | Error::InvalidCertRevocationList(_),
            ) => Failure::ClientCertificate,
            Some(Error::AlertReceived(_)) => Failure::Alert,
            Some(
                Error::PeerMisbehaved(_)
                | Error::InappropriateHandshakeMessage { .. }
                | Error::DecryptError
                | Error::PeerSentOversizedRecord,
            ) => Failure::Protocol,
            Some(_) => Failure::Other,
        }
    }
}

/// What one worker counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    full: AtomicU64,
    resumed: AtomicU64,
    failed: [AtomicU64; Failure::ALL.len()],
}

/// The figures of some workers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handshakes {
    /// Whole handshakes.
    pub full: u64,
    /// Those that went on with an earlier session.
    pub resumed: u64,
    /// By reason, as in [`Failure::ALL`].
    pub failed: [u64; Failure::ALL.len()],
}

impl Counters {
    pub fn done(&self, resumed: bool) {
        let counter = if resumed { &self.resumed } else { &self.full };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn failed(&self, failure: Failure) {
        let at = Failure::ALL.iter().position(|f| *f == failure);
        if let Some(counter) = at.and_then(|at| self.failed.get(at)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Handshakes {
    /// Adds the figures of a worker.
    pub fn add(&mut self, counters: &Counters) {
        self.full += counters.full.load(Ordering::Relaxed);
        self.resumed += counters.resumed.load(Ordering::Relaxed);
        for (sum, counter) in self.failed.iter_mut().zip(&counters.failed) {
            *sum += counter.load(Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_workers_add_up_by_reason() {
        let all = [Counters::default(), Counters::default()];
        all[0].done(false);
        all[1].done(true);
        for failure in Failure::ALL {
            all[1].failed(failure);
        }
        all[0].failed(Failure::Alert);
        let mut sum = Handshakes::default();
        all.iter().for_each(|counters| sum.add(counters));
        assert_eq!((sum.full, sum.resumed), (1, 1));
        let by_name: Vec<_> = Failure::ALL
            .iter()
            .map(|f| f.name())
            .zip(sum.failed)
            .collect();
        assert!(by_name.contains(&("alert", 2)) && by_name.contains(&("timeout", 1)));
    }

    #[test]
    fn an_error_that_is_not_of_tls_means_that_the_client_went_away() {
        let tls = |error: Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let eof = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(Failure::of(&eof), Failure::Gone);
        let none = tls(Error::NoCertificatesPresented);
        assert_eq!(Failure::of(&none), Failure::ClientCertificate);
        let protocol = tls(Error::NoApplicationProtocol);
        assert_eq!(Failure::of(&protocol), Failure::Incompatible);
    }
}

//! Whether an address is free, and who has it.

use crate::error::{Error, Kind, Result};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// How the port is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Fails when `address` cannot be listened on, with who holds it if that can be found out.
pub(crate) fn check(address: SocketAddr, protocol: Protocol, wanted_for: &str) -> Result<()> {
    let bound = match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    };
    let Err(error) = bound else { return Ok(()) };
    let name = match protocol {
        Protocol::Tcp => "port",
        Protocol::Udp => "UDP port",
    };
    match error.kind() {
        ErrorKind::AddrInUse => {
            let owner = owner(address, protocol)
                .map(|who| format!(" by {who}"))
                .unwrap_or_default();
            let message = format!("{name} {address} (for {wanted_for}) is in use{owner}");
            Err(Error::new(Kind::Conflict, message).hint(
                "stop that program, or choose other addresses for a new installation: --address-block N --home DIR",
            ))
        }
        ErrorKind::AddrNotAvailable => Err(Error::failed(format!("this machine has no address {}", address.ip()))
            .hint("Linux has all of 127.0.0.0/8; elsewhere add it to the loopback interface")),
        _ => Err(Error::failed(format!(
            "cannot listen on {address} (for {wanted_for}): {error}"
        ))),
    }
}

/// Process that listens there, as `name (pid N)`.
fn owner(address: SocketAddr, protocol: Protocol) -> Option<String> {
    let (v4, v6) = match protocol {
        Protocol::Tcp => ("/proc/net/tcp", "/proc/net/tcp6"),
        Protocol::Udp => ("/proc/net/udp", "/proc/net/udp6"),
    };
    let text = [v4, v6]
        .map(|p| std::fs::read_to_string(p).unwrap_or_default())
        .concat();
    let inodes = inodes(&text, address, protocol);
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            let Ok(target) = std::fs::read_link(descriptor.path()) else {
                continue;
            };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']'));
            if inode.is_some_and(|i| inodes.iter().any(|known| known == i)) {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                return Some(format!("{} (pid {pid})", name.trim()));
            }
        }
    }
    None
}

/// Socket inodes in the text of `/proc/net/{tcp,udp}{,6}` that listen on `address` or on its port at every address.
fn inodes(text: &str, address: SocketAddr, protocol: Protocol) -> Vec<String> {
    /// TCP_LISTEN in the kernel's include/net/tcp_states.h.
    const LISTEN: &str = "0A";
    let mut found = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
            continue;
        };
        let Some((host, port)) = local.split_once(':') else {
            continue;
        };
        let same_port = u16::from_str_radix(port, 16).is_ok_and(|p| p == address.port());
        let every = host.bytes().all(|b| b == b'0');
        // The kernel prints an IPv4 address as a number in its own byte order.
        let exact = u32::from_str_radix(host, 16).is_ok_and(|n| Ipv4Addr::from(n.to_ne_bytes()) == address.ip());
        if same_port && (every || exact) && (protocol == Protocol::Udp || *state == LISTEN) {
            found.push((*inode).to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_itself_and_the_process() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (address, protocol) in [
            (tcp.local_addr().unwrap(), Protocol::Tcp),
            (udp.local_addr().unwrap(), Protocol::Udp),
        ] {
            let error = check(address, protocol, "the gateway of eu").unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(&address.to_string()) && text.contains("gateway of eu"),
                "{text}"
            );
            assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
            assert!(error.remedy().unwrap().contains("--address-block"));
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(check(free, Protocol::Tcp, "x").is_ok());
    }

    #[test]
    fn connections_are_no_listeners() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1\n   \
                     1: 0100007F:20FB 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 12 1\n   \
                     2: 00000000:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1\n   \
                     3: 0100007F:20FC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 14 1\n";
        let address = SocketAddr::from(([127, 0, 0, 1], 8443));
        if cfg!(target_endian = "little") {
            assert_eq!(inodes(table, address, Protocol::Tcp), ["11", "13"]);
        }
    }
}

//! /proc/net (proc_pid_net(5)): the sockets of the sandbox, and the loopback device.

use std::net::{IpAddr, SocketAddr};

use crate::cx::Cx;
use crate::id::ObjectId;
use crate::net::inet::Transport;
use crate::net::{Family, Name, Socket};

/// Files there.
pub(super) const NET_FILES: [&[u8]; 17] = [
    b"arp",
    b"dev",
    b"if_inet6",
    b"ipv6_route",
    b"netlink",
    b"netstat",
    b"packet",
    b"raw",
    b"raw6",
    b"route",
    b"snmp",
    b"sockstat",
    b"tcp",
    b"tcp6",
    b"udp",
    b"udp6",
    b"unix",
];

/// Sockets that a list tells of at most. Linux differs: it tells of all.
const ROWS_MAX: usize = 4096;
/// Length of a line of /proc/net/tcp and of /proc/net/udp with its newline, in bytes.
const TCP_LINE: usize = 150;
const UDP_LINE: usize = 128;

const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
";
const SNMP: &str = "\
Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos InDiscards InDelivers OutRequests OutDiscards OutNoRoutes ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs FragFails FragCreates
Ip: 2 64 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors
";
const UDP_SNMP: &str = "\
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 0 0 0 0 0 0 0 0 0
";

pub(super) fn net_text(cx: &Cx<'_>, name: &[u8]) -> Option<String> {
    let header = |text: &str| format!("{text}\n");
    Some(match name {
        b"tcp" => ip(cx, (Family::Inet, Transport::Tcp)),
        b"tcp6" => ip(cx, (Family::Inet6, Transport::Tcp)),
        b"udp" => ip(cx, (Family::Inet, Transport::Udp)),
        b"udp6" => ip(cx, (Family::Inet6, Transport::Udp)),
        b"unix" => unix(cx),
        b"dev" => DEV.to_owned(),
        b"route" => padded(
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
            UDP_LINE,
        ),
        b"if_inet6" => header("00000000000000000000000000000001 01 80 10 80       lo"),
        b"ipv6_route" => {
            let zeros = "0".repeat(32);
            let one = format!("{}1", "0".repeat(31));
            format!("{one} 80 {zeros} 00 {zeros} 00000000 00000002 00000000 80200001       lo\n")
        }
        b"arp" => {
            header("IP address       HW type     Flags       HW address            Mask     Device")
        }
        b"packet" => header("sk       RefCnt Type Proto  Iface R Rmem   User   Inode"),
        b"raw" => padded(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops",
            UDP_LINE,
        ),
        b"raw6" => header(
            "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops",
        ),
        b"netlink" => netlink(cx),
        b"netstat" => String::new(),
        b"snmp" => {
            let established = of(cx, Family::Inet).chain(of(cx, Family::Inet6));
            let count = established
                .filter(|(_, one)| {
                    one.transport() == Some(Transport::Tcp) && one.tcp_state_number() == 1
                })
                .count();
            format!("{SNMP}Tcp: 1 200 120000 -1 0 0 0 0 {count} 0 0 0 0 0 0\n{UDP_SNMP}")
        }
        b"sockstat" => sockstat(cx),
        _ => return None,
    })
}

fn of<'a>(cx: &'a Cx<'_>, family: Family) -> impl Iterator<Item = (ObjectId, &'a Socket)> {
    let all = cx.kernel.objects.sockets.iter();
    all.filter(move |(_, socket)| socket.family == family)
}

fn padded(line: &str, len: usize) -> String {
    format!("{line:<0$}\n", len.saturating_sub(1))
}

/// Words of an address in the order of the network, as the host's numbers.
fn shown(address: SocketAddr) -> String {
    let words = |octets: &[u8]| {
        let words = octets.chunks_exact(4);
        words
            .map(|word| {
                let word = word.first_chunk().copied().unwrap_or_default();
                format!("{:08X}", u32::from_le_bytes(word))
            })
            .collect::<String>()
    };
    let address_text = match address.ip() {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    format!("{address_text}:{:04X}", address.port())
}

/// tcp4_seq_show, tcp6_seq_show, udp4_seq_show and udp6_seq_show. Sockets that are bound to no port are not shown.
fn ip(cx: &Cx<'_>, (family, transport): (Family, Transport)) -> String {
    let is_v6 = family == Family::Inet6;
    let nobody = SocketAddr::new(
        match is_v6 {
            true => IpAddr::V6([0; 16].into()),
            false => IpAddr::V4([0; 4].into()),
        },
        0,
    );
    let lead = match (is_v6, transport) {
        (false, Transport::Udp) => "   ",
        _ => "  ",
    };
    let addresses = match is_v6 {
        true => "local_address                         remote_address                        st",
        false => "local_address rem_address   st",
    };
    let tail = match transport {
        Transport::Tcp => "inode",
        Transport::Udp => "inode ref pointer drops",
    };
    let title = format!(
        "{lead}sl  {addresses} tx_queue rx_queue tr tm->when retrnsmt   uid  timeout {tail}"
    );
    let line_len = match (is_v6, transport) {
        (true, _) => 0,
        (false, Transport::Tcp) => TCP_LINE,
        (false, Transport::Udp) => UDP_LINE,
    };
    let mut out = padded(&title, line_len);
    let sockets = of(cx, family).filter(|(_, one)| one.transport() == Some(transport));
    let sockets = sockets.filter_map(|(id, one)| Some((id, one, one.local()?)));
    let width = match transport {
        Transport::Tcp => 4,
        Transport::Udp => 5,
    };
    for (number, (id, socket, local)) in sockets.take(ROWS_MAX).enumerate() {
        let state = match transport {
            Transport::Tcp => socket.tcp_state_number(),
            Transport::Udp if socket.remote().is_some() => 1,
            Transport::Udp => 7,
        };
        let (local, remote) = (shown(local), shown(socket.remote().unwrap_or(nobody)));
        let unsent = socket.unsent_bytes();
        let unread = socket.readable_bytes().unwrap_or(0);
        let (uid, inode) = (cx.kernel.caller.user.real, id.0.saturating_add(16));
        let rest = match transport {
            Transport::Tcp => "1 0000000000000000 100 0 0 10 0",
            Transport::Udp => "2 0000000000000000 0",
        };
        let line = format!(
            "{number:width$}: {local} {remote} {state:02X} {unsent:08X}:{unread:08X} 00:00000000 00000000 {uid:5} {:8} {inode} {rest}",
            0
        );
        out.push_str(&padded(&line, line_len));
    }
    out
}

/// unix_seq_show
fn unix(cx: &Cx<'_>) -> String {
    let mut out = "Num       RefCount Protocol Flags    Type St Inode Path\n".to_owned();
    for (id, socket) in of(cx, Family::Unix).take(ROWS_MAX) {
        let flags = match socket.is_listening() {
            true => 0x10000,
            false => 0,
        };
        let is_open = socket.is_connected() && !socket.is_listening();
        let state = if is_open { 3 } else { 1 };
        let references = if is_open { 3 } else { 2 };
        let kind = socket.kind.number();
        let inode = id.0.saturating_add(16);
        out.push_str(&format!(
            "0000000000000000: {references:08X} 00000000 {flags:08X} {kind:04X} {state:02X} {inode:5}"
        ));
        if let Some(Name::Unix(name)) = &socket.name {
            out.push(' ');
            out.push_str(&name_text(name));
        }
        out.push('\n');
    }
    out
}

/// A path, or an abstract name with `@` for each NUL. A line feed would begin another line.
fn name_text(name: &[u8]) -> String {
    let path = name
        .strip_suffix(b"\0")
        .filter(|path| path.first() != Some(&0));
    let shown: Vec<u8> = path
        .unwrap_or(name)
        .iter()
        .map(|byte| match byte {
            0 | b'\n' => b'@',
            byte => *byte,
        })
        .collect();
    String::from_utf8_lossy(&shown).into_owned()
}

fn netlink(cx: &Cx<'_>) -> String {
    let mut out =
        "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
            .to_owned();
    for (id, socket) in of(cx, Family::Netlink).take(ROWS_MAX) {
        let port = match socket.name {
            Some(Name::Netlink(port)) => port,
            Some(Name::Unix(_) | Name::Inet(_)) | None => 0,
        };
        out.push_str(&format!(
            "0000000000000000 {:<3} {port:<10} 00000000 {:<8} {:<8} {:<5} {:<8} {:<8} {:<8}\n",
            0,
            0,
            0,
            0,
            2,
            0,
            id.0.saturating_add(16)
        ));
    }
    out
}

fn sockstat(cx: &Cx<'_>) -> String {
    let count = |transport| {
        let bound = of(cx, Family::Inet).filter(|(_, one)| one.local().is_some());
        bound
            .filter(|(_, one)| one.transport() == Some(transport))
            .count()
    };
    format!(
        "sockets: used {}\nTCP: inuse {} orphan 0 tw 0 alloc {} mem 0\nUDP: inuse {} mem 0\nUDPLITE: inuse 0\nRAW: inuse 0\nFRAG: inuse 0 memory 0\n",
        cx.kernel.objects.sockets.iter().count(),
        count(Transport::Tcp),
        count(Transport::Tcp),
        count(Transport::Udp)
    )
}

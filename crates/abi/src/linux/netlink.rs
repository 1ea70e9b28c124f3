//! Devices and addresses (linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/if.h).

pub const NETLINK_ROUTE: i32 = 0;
pub const SOL_NETLINK: i32 = 270;

pub const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;
pub const NLM_F_MULTI: u16 = 2;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_DUMP: u16 = 0x300;

pub const RTM_NEWLINK: u16 = 16;
pub const RTM_GETLINK: u16 = 18;
pub const RTM_NEWADDR: u16 = 20;
pub const RTM_GETADDR: u16 = 22;
pub const RTM_NEWROUTE: u16 = 24;
pub const RTM_GETROUTE: u16 = 26;

pub const ARPHRD_LOOPBACK: u16 = 772;
pub const IFF_UP: u32 = 1;
pub const IFF_LOOPBACK: u32 = 8;
pub const IFF_RUNNING: u32 = 0x40;
pub const IFF_LOWER_UP: u32 = 0x1_0000;

pub const IFLA_ADDRESS: u16 = 1;
pub const IFLA_BROADCAST: u16 = 2;
pub const IFLA_IFNAME: u16 = 3;
pub const IFLA_MTU: u16 = 4;
pub const IFLA_QDISC: u16 = 6;
pub const IFLA_TXQLEN: u16 = 13;
pub const IFLA_OPERSTATE: u16 = 16;

pub const IFA_ADDRESS: u16 = 1;
pub const IFA_LOCAL: u16 = 2;
pub const IFA_LABEL: u16 = 3;
pub const IFA_FLAGS: u16 = 8;
pub const IFA_F_PERMANENT: u8 = 0x80;
pub const IFA_CACHEINFO: u16 = 6;
pub const IFA_INFINITY: u32 = u32::MAX;

pub const RT_SCOPE_LINK: u8 = 253;
pub const RT_SCOPE_HOST: u8 = 254;
pub const RT_TABLE_MAIN: u8 = 254;
pub const RT_TABLE_LOCAL: u8 = 255;
pub const RTPROT_KERNEL: u8 = 2;
pub const RTN_LOCAL: u8 = 2;
pub const RTN_BROADCAST: u8 = 3;
pub const RTM_F_CLONED: u32 = 0x200;
pub const RTCF_BROADCAST: u32 = 0x1000_0000;
pub const RTCF_LOCAL: u32 = 0x8000_0000;
pub const RTA_DST: u16 = 1;
pub const RTA_SRC: u16 = 2;
pub const RTA_OIF: u16 = 4;
pub const RTA_PRIORITY: u16 = 6;
pub const RTA_PREFSRC: u16 = 7;
pub const RTA_CACHEINFO: u16 = 12;
pub const RTA_TABLE: u16 = 15;
pub const RTA_PREF: u16 = 20;
pub const RTA_UID: u16 = 25;

pub const SIOCGIFNAME: u32 = 0x8910;
pub const SIOCGIFCONF: u32 = 0x8912;
pub const SIOCGIFFLAGS: u32 = 0x8913;
pub const SIOCGIFADDR: u32 = 0x8915;
pub const SIOCGIFDSTADDR: u32 = 0x8917;
pub const SIOCGIFBRDADDR: u32 = 0x8919;
pub const SIOCGIFNETMASK: u32 = 0x891b;
pub const SIOCGIFMETRIC: u32 = 0x891d;
pub const SIOCGIFMTU: u32 = 0x8921;
pub const SIOCGIFHWADDR: u32 = 0x8927;
pub const SIOCGIFINDEX: u32 = 0x8933;
pub const SIOCGIFTXQLEN: u32 = 0x8942;

guest_struct! {
    /// struct ifreq (netdevice(7))
    pub struct Ifreq { pub ifr_name: [u8; 16], pub value: [u8; 24], }
}
guest_struct! {
    /// struct ifconf (netdevice(7))
    pub struct Ifconf { pub ifc_len: i32, pub pad: i32, pub ifc_buf: u64, }
}
guest_struct! {
    /// struct nlmsghdr (netlink(7))
    pub struct Nlmsghdr {
        pub nlmsg_len: u32, pub nlmsg_type: u16, pub nlmsg_flags: u16, pub nlmsg_seq: u32,
        pub nlmsg_pid: u32,
    }
}
guest_struct! {
    /// struct ifinfomsg (rtnetlink(7))
    pub struct Ifinfomsg {
        pub ifi_family: u8, pub pad: u8, pub ifi_type: u16, pub ifi_index: i32, pub ifi_flags: u32,
        pub ifi_change: u32,
    }
}
guest_struct! {
    /// struct ifaddrmsg (rtnetlink(7))
    pub struct Ifaddrmsg {
        pub ifa_family: u8, pub ifa_prefixlen: u8, pub ifa_flags: u8, pub ifa_scope: u8,
        pub ifa_index: u32,
    }
}
guest_struct! {
    /// struct ifa_cacheinfo (rtnetlink(7)): lifetimes in seconds, times of changes in hundredths of a second.
    pub struct IfaCacheinfo {
        pub ifa_prefered: u32, pub ifa_valid: u32, pub cstamp: u32, pub tstamp: u32,
    }
}
guest_struct! {
    /// struct rtmsg (rtnetlink(7))
    pub struct Rtmsg {
        pub rtm_family: u8, pub rtm_dst_len: u8, pub rtm_src_len: u8, pub rtm_tos: u8,
        pub rtm_table: u8, pub rtm_protocol: u8, pub rtm_scope: u8, pub rtm_type: u8,
        pub rtm_flags: u32,
    }
}
guest_struct! {
    /// struct rta_cacheinfo (linux/rtnetlink.h)
    pub struct RtaCacheinfo {
        pub rta_clntref: u32, pub rta_lastuse: u32, pub rta_expires: i32, pub rta_error: u32,
        pub rta_used: u32, pub rta_id: u32, pub rta_ts: u32, pub rta_tsage: u32,
    }
}

# Runs a command on a machine of its own, and beside it another one that has all sorts of addresses, and serves.
set -e
far=kvmlet-test-$$
room=$(mktemp -d)
ip netns add $far
trap 'ip netns del $far; umount /etc/hosts /etc/nsswitch.conf /etc/resolv.conf; rm -r "$room"' EXIT
ip link set lo up
ip link add near type veth peer name there netns $far
ip address add 198.51.100.1/24 dev near
ip address add 93.184.216.35/32 dev lo
ip link set near up
ip route add default dev near
ip -n $far link set lo up
for address in 93.184.216.34 10.9.9.9 169.254.169.254; do
    ip -n $far address add $address/32 dev there
done
ip -n $far link set there up
ip -n $far route add default dev there
cat >"$room/hosts" <<'END'
127.0.0.1 localhost
93.184.216.34 site.example
10.9.9.9 private.rebind.example
127.0.0.1 local.rebind.example
169.254.169.254 metadata.example
END
echo 'hosts: files dns' >"$room/nsswitch"
mount --bind "$room/hosts" /etc/hosts
mount --bind "$room/nsswitch" /etc/nsswitch.conf
# Nobody answers there, and says so at once.
echo 'nameserver 127.0.0.1' >"$room/resolv"
mount --bind "$room/resolv" /etc/resolv.conf
cat >"$room/serve.py" <<'END'
import http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"served\n")
    def log_message(self, *_):
        pass
servers = [http.server.ThreadingHTTPServer(("", port), Handler) for port in (80, 81)]
for server in servers:
    threading.Thread(target=server.serve_forever).start()
print("up", flush=True)
END
ip netns exec $far /usr/bin/python3 "$room/serve.py" >"$room/up" &
far_server=$!
/usr/bin/python3 "$room/serve.py" >"$room/up.near" &
near_server=$!
until grep -q up "$room/up" && grep -q up "$room/up.near"; do sleep 0.05; done
status=0
"$@" || status=$?
kill $far_server $near_server
exit $status

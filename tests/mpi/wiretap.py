"""Runs a command and writes down all that TCP carries over the loopback interface meanwhile.

    wiretap.py OUT COMMAND...      OUT: a file; the bytes of every connection, each way by itself, one after another

Needs the right to read packets: root's, or that of a network namespace of one's own (`unshare --map-root-user --net`),
whose loopback interface it brings up. Ends with the command's status; where packets were lost, with status 99.
"""

import socket
import struct
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

ANY_PROTOCOL, SOL_PACKET, PACKET_STATISTICS = 3, 263, 6
BUFFER_BYTES = 2**28
LOST = 99
Flow = tuple[bytes, bytes]
Segments = dict[Flow, dict[int, bytes]]


def listening() -> socket.socket:
    """A socket that gets all packets of lo."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ANY_PROTOCOL))
    tap.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), BUFFER_BYTES)
    tap.bind(("lo", ANY_PROTOCOL))
    tap.settimeout(0.2)
    return tap


def listen(tap: socket.socket, over: threading.Event, packets: list[bytes]) -> None:
    """Until the command is over and nothing comes any more. Loopback shows every packet twice: going out, coming in."""
    while True:
        try:
            packet, (_, _, direction, *_) = tap.recvfrom(2**18)
        except TimeoutError:
            if over.is_set():
                return
            continue
        if direction != socket.PACKET_OUTGOING:
            packets.append(packet)


def segments(packets: list[bytes]) -> Segments:
    """The TCP payloads of IPv4 packets, by connection and way and then by sequence number."""
    found: Segments = defaultdict(dict)
    for packet in packets:
        if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            continue
        ip_bytes = 4 * (packet[0] & 15)
        (total,) = struct.unpack_from(">H", packet, 2)
        tcp = packet[ip_bytes : total or len(packet)]
        ports, (number,) = tcp[:4], struct.unpack_from(">I", tcp, 4)
        data = tcp[4 * (tcp[12] >> 4) :]
        if data:
            found[packet[12:20], ports].setdefault(number, data)
    return found


def stream(parts: dict[int, bytes]) -> bytes:
    """The bytes of one way of a connection, in order."""
    first, whole = next(iter(parts)), bytearray()
    for number, data in sorted(parts.items(), key=lambda part: (part[0] - first) % 2**32):
        at = (number - first) % 2**32
        whole[at : at + len(data)] = data
    return bytes(whole)


def main() -> int:
    out, command = Path(sys.argv[1]), sys.argv[2:]
    if "lo" not in Path("/proc/net/route").read_text() and Path("/proc/net/dev").read_text().count(":") == 1:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    over, packets = threading.Event(), list[bytes]()
    with listening() as tap:
        listener = threading.Thread(target=listen, args=(tap, over, packets))
        listener.start()
        try:
            status = subprocess.run(command, check=False).returncode
        finally:
            over.set()
            listener.join()
        _, lost = struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    flows = segments(packets)
    out.write_bytes(b"".join(stream(parts) for parts in flows.values()))
    print(f"{len(packets)} packets in {len(flows)} streams, {lost} lost", file=sys.stderr)
    return LOST if lost else status


if __name__ == "__main__":
    sys.exit(main())

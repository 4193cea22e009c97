"""Several gateways on one address, one for each core (configuration key `server.reuse_port`)."""

from gatewaylab.wire import eventually



def test_kernel_deals_connections_out_among_the_processes(lab):
    """Each process serves the connections that it accepts, and reports on an address of its own."""
    backend = lab.backend()
    shared = {"reuse_port": True, "listen": ["127.0.0.1:0"]}
    one = lab.gateway({"server": shared}, backend=backend.url())
    both = [f"127.0.0.1:{one.port}"]
    other = lab.gateway({"server": {"reuse_port": True, "listen": ["127.0.0.1:0", *both]}}, backend=backend.url())

    pairs = [lab.pair(one, backend) for _ in range(64)]
    for number, (client, peer) in enumerate(pairs):
        client.say(f"{number}")
        assert peer.read_frame().text == f"{number}"
    there = other.connections()["total_connections"]
    assert 0 < there < 64, "64 connections, and one process got them all"
    for client, _ in pairs:
        client.vanish()
    assert eventually(other.is_empty, "the other one's clients are gone")


def test_without_it_a_port_belongs_to_one(lab):
    """A second gateway, started by mistake, says that the port is taken."""
    backend = lab.backend()
    gateway = lab.gateway({"server": {"reuse_port": True, "listen": ["127.0.0.1:0"]}}, backend=backend.url())
    second = lab.gateway({"server": {"listen": [f"127.0.0.1:{gateway.port}"]}}, backend=backend.url(), wait=False)
    second.may_end = True
    assert second.process.wait() == 1
    assert f"port {gateway.port} is taken" in second.log

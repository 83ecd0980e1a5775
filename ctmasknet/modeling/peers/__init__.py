"""Networks of the systems that the paper is compared with; docs/peers.md names them."""

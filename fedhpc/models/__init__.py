"""Networks, frozen public backbones, parameters as one vector, and the device that they run on."""

/** Vendor id of devices that the bridge serves itself: the letters VMSG. */
export const bridgeVendorId = 0x47534d56;

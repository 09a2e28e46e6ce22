/** Copy-on-write disks that fork: images, the blkif back end, and the service that runs both. See README.md. */
export { DiskError, type DiskFault } from "./errors.ts";
export {
  type AvoidancePort,
  BLOCK_BYTES,
  type BlockArrival,
  type BlockSource,
  type FilePort,
  type FileStore,
  type PageFill,
  SECTOR_BYTES,
} from "./ports.ts";
export { type ImageName, ImagePaths } from "./image_paths.ts";
export {
  type ForkedPaths,
  type ForkPaths,
  ImageRegistry,
  MAX_LAYERS,
  OpenDisk,
  type OpenOptions,
} from "./image_registry.ts";
export {
  checkImage,
  commitImage,
  createImage,
  type ImageCheck,
  type ImageInfo,
  imageInfo,
  removeImage,
} from "./image_commands.ts";
export { FrozenBlocks } from "./frozen_blocks.ts";
export {
  type AttachDisk,
  type DiskGeometry,
  type DiskId,
  DiskService,
  type DiskServiceOptions,
  type DiskStatistics,
  type RingAddress,
} from "./disk_service.ts";
export { runServiceLoop } from "./service_loop.ts";
export {
  BACKEND_TYPE,
  backendPath,
  type DiskControl,
  type DiskNode,
  diskNodes,
  type DiskStore,
  frontendPath,
  XenbusDisk,
  type XenbusDiskOptions,
} from "./xenbus_disk.ts";

/** The last lines of the log, for `snowflock logs`, and those to come. */

/** Lines kept. */
const MAX_LINES = 2000;
/** Lines that a slow reader may lag behind before it loses some. */
const MAX_LAG = 1000;

export class LogBuffer {
  readonly #lines: string[] = [];
  readonly #followers = new Set<(line: string) => void>();

  /** Takes a line without its newline. */
  push(line: string): void {
    this.#lines.push(line);
    if (this.#lines.length > MAX_LINES) this.#lines.shift();
    for (const follower of this.#followers) follower(line);
  }

  /** The last `count` lines, oldest first. */
  tail(count: number): readonly string[] {
    return count <= 0 ? [] : this.#lines.slice(-count);
  }

  /** `count` lines of the past, then, with `follow`, those to come until the reader cancels. Bytes, each line with its newline. */
  stream(count: number, follow: boolean): ReadableStream<Uint8Array> {
    const encoder = new TextEncoder();
    let follower: ((line: string) => void) | undefined;
    const stop = () => {
      if (follower !== undefined) this.#followers.delete(follower);
    };
    return new ReadableStream({
      start: (controller) => {
        let dropped = 0;
        for (const line of this.tail(count)) controller.enqueue(encoder.encode(`${line}\n`));
        if (!follow) return controller.close();
        follower = (line) => {
          if ((controller.desiredSize ?? 0) <= -MAX_LAG - MAX_LINES) {
            dropped++;
            return;
          }
          if (dropped > 0) {
            controller.enqueue(
              encoder.encode(`${JSON.stringify({ level: "warning", message: "lines were lost", dropped })}\n`),
            );
          }
          dropped = 0;
          controller.enqueue(encoder.encode(`${line}\n`));
        };
        this.#followers.add(follower);
      },
      cancel: stop,
    });
  }

  /** Readers that follow. */
  get followers(): number {
    return this.#followers.size;
  }
}

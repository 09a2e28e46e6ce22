/**
 * The head of the built program: a shell script in front of a compressed archive. It unpacks the archive once per build and
 * then runs it. POSIX sh, tail, gzip and tar are all it needs.
 */

/** What the agent may do: all its doors are named, none is asked for, and no code is fetched at run time. */
export const RUN_FLAGS = [
  "--allow-ffi",
  "--allow-read",
  "--allow-write",
  "--allow-net",
  "--allow-run",
  "--allow-env",
  "--allow-sys",
  "--no-prompt",
  "--no-config",
  "--no-lock",
  "--no-remote",
  "--no-npm",
] as const;

export interface LauncherFacts {
  /** Names this build's folder: hex digits. */
  readonly build: string;
}

/** The offset of the archive, in decimal, always this wide so that it does not change the head's length. */
const OFFSET_DIGITS = 8;

/**
 * The script. A folder of this build that is complete is used wherever it is found; root looks in places of root's only, or
 * another user could have root run code of theirs. Unpacking goes to a folder of its own and is renamed into place, so
 * that two first starts at once, or one that is cut short, leave nothing half done.
 */
export function launcher({ build }: LauncherFacts): Uint8Array {
  if (!/^[0-9a-f]{8,64}$/.test(build)) throw new RangeError("not a build's facts");
  const script = `#!/bin/sh
# snowflock: this file is a shell script and, after it, the archive of the program.
set -u
build=${build}
offset=${"0".repeat(OFFSET_DIGITS)}
system=/var/lib/snowflock/runtime
fail() { echo "snowflock: $1" >&2; exit 1; }
if [ -n "\${SNOWFLOCK_RUNTIME_DIR-}" ]; then
  set -- "$SNOWFLOCK_RUNTIME_DIR" "" "$@"
elif [ "$(id -u)" = 0 ]; then
  set -- "$system" "" "$@"
else
  user=\${XDG_CACHE_HOME:-\${HOME:-/nonexistent}/.cache}/snowflock/runtime
  set -- "$system" "$user" "$@"
fi
if [ -x "$1/$build/deno" ]; then
  home=$1/$build
elif [ -n "$2" ] && [ -x "$2/$build/deno" ]; then
  home=$2/$build
else
  umask 022
  base=
  for folder in "$1" "$2"; do
    if [ -n "$folder" ] && mkdir -p "$folder" 2>/dev/null && [ -w "$folder" ]; then base=$folder; break; fi
  done
  [ -n "$base" ] || fail "Cannot unpack: neither $1 nor \${2:-another folder} can be written; set SNOWFLOCK_RUNTIME_DIR"
  home=$base/$build
  fresh=$base/.$build.$$
  trap 'rm -rf "$fresh"' EXIT
  trap 'exit 1' HUP INT TERM
  rm -rf "$fresh"
  mkdir "$fresh" || fail "Cannot unpack into $base"
  # gzip checks the archive's CRC and length; its status would be lost in the pipe.
  tail -c +"$offset" "$0" | { gzip -dc 2>/dev/null || : > "$fresh/damaged"; } | (cd "$fresh" && tar -xf -)
  unpacked=$?
  [ ! -e "$fresh/damaged" ] || fail "Cannot unpack $0: the file is damaged"
  [ "$unpacked" = 0 ] && [ -x "$fresh/deno" ] || fail "Cannot unpack into $base: is its disk full?"
  # Another start may have been first: then this moves the copy into its folder, from where it is dropped.
  mv "$fresh" "$home" 2>/dev/null || [ -x "$home/deno" ] || fail "Cannot rename $fresh to $home"
  rm -rf "$home/.$build.$$" "$fresh"
  trap - EXIT HUP INT TERM
fi
shift 2
export DENO_NO_UPDATE_CHECK=1
if [ -w "$home/cache" ]; then export DENO_DIR="$home/cache"; fi
exec "$home/deno" run ${RUN_FLAGS.join(" ")} "$home/main.js" "$@"
`;
  const encoder = new TextEncoder();
  const offset = encoder.encode(script).length + 1;
  const digits = String(offset).padStart(OFFSET_DIGITS, "0");
  return encoder.encode(script.replace(`offset=${"0".repeat(OFFSET_DIGITS)}`, `offset=${digits}`));
}

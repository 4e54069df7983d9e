#!/bin/sh
# What to run on the first Mac; docs/first_mac.md says what it proves. With --dry-run nothing is asked of CoreML.
set -eu
VIG=${VIG:-vig}
NETWORKS=${NETWORKS:-mobilevigv2_ti greedyvig_s mobilevit_xxs vig_ti}
UNITS=${UNITS:-ALL}
OUT=${OUT:-first-mac}
DRY=${1:-}

mkdir -p "$OUT"
$VIG doctor > "$OUT/doctor.txt"
FAILED=
for NAME in $NETWORKS; do
    echo "== $NAME"
    $VIG build "$NAME" -o "$OUT/$NAME.safetensors" > "$OUT/$NAME.build.txt"
    $VIG export "$OUT/$NAME.safetensors" -o "$OUT/$NAME-package" > "$OUT/$NAME.export.txt"
    PACKAGE=$OUT/$NAME-package/fp16.mlpackage
    $VIG profile "$PACKAGE" > "$OUT/$NAME.lint.txt"
    for DEVICE in mac ${TEAM:+iphone}; do
        PROTOCOL=
        [ "$DEVICE" = mac ] || PROTOCOL="--team $TEAM --rounds 5 --iterations 20"
        # shellcheck disable=SC2086  # options apart
        $VIG profile "$PACKAGE" --device "$DEVICE" --units "$UNITS" $PROTOCOL $DRY \
            --against "$OUT/$NAME.safetensors" -o "$OUT/$NAME-$DEVICE" > "$OUT/$NAME.$DEVICE.txt" ||
            FAILED="$FAILED $NAME-$DEVICE"
    done
done
tar -czf "$OUT.tar.gz" --exclude '*.mlpackage' --exclude '*.safetensors' --exclude '*.npz' --exclude modelrunner "$OUT"
echo "Wrote $OUT.tar.gz: please send it back."
[ -z "$FAILED" ] || { echo "Failed, and worth as much as the rest:$FAILED" >&2; exit 1; }

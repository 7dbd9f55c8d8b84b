// A bound that somebody is to hear about: once when it is passed, and once when it is kept again.

/** Returns what is to be called with every new value. */
export function createAlarm(
  atMost: number,
  onChange: (isPassed: boolean, value: number) => void,
): (value: number) => void {
  let isPassed = false;
  return (value) => {
    if (value > atMost === isPassed) return;
    isPassed = !isPassed;
    onChange(isPassed, value);
  };
}

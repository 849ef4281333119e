#!/bin/sh
# A subscriber in the shell: prints the topic and the text of each message. It needs jq.
{
  echo '{"op":"sub","id":1,"pattern":"lapce.>"}'
  exec cat # Further operations come from the terminal; at its end the subscription ends.
} | lapce-ipc connect | jq --unbuffered -r 'select(.event == "message") | "\(.topic): \(.data)"'
